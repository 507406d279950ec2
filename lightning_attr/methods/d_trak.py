"""D-TRAK: TRAK on the gradient of the squared output (Zheng et al., ICLR 2024, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_attr.gradients import Output
from lightning_attr.methods.trak import Trak


class DTrak(Trak):
    """TRAK whose features are gradients of the prediction's mean square, in which no target noise plays a part.

    Args:
        output: What is differentiated.
        query: What is differentiated for queries; its function is that of ``output``. None is the same as for samples.
        settings: The arguments of ``Trak``.
    """

    def __init__(self, output: Output = Output("squared_output"), query: Output | None = None, **settings: Any) -> None:
        # Who asks for other draws of queries names no function, and the default is the loss.
        query = None if query is None else replace(query, function=output.function)
        super().__init__(output=output, query=query, **settings)

    @property
    def base_name(self) -> str:
        """``d-trak``."""
        return "d-trak"
