"""D-TRAK: TRAK on the gradient of the squared output (Zheng et al., ICLR 2024, section 3)."""

from __future__ import annotations

from typing import Any

from lightning_attr.gradients import Output
from lightning_attr.methods.trak import Trak


class DTrak(Trak):
    """TRAK whose features are gradients of the prediction's mean square, in which no target noise plays a part.

    Args:
        output: What is differentiated.
        settings: The arguments of ``Trak``.
    """

    def __init__(self, output: Output = Output("squared_output"), **settings: Any) -> None:
        super().__init__(output=output, **settings)

    @property
    def name(self) -> str:
        """``d-trak``."""
        return "d-trak"
