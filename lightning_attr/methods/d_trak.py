"""D-TRAK: TRAK on the gradient of the squared output (Zheng et al., ICLR 2024, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_attr.gradients import Output
from lightning_attr.methods.trak import Trak


class DTrak(Trak):
    """TRAK whose features are gradients of the prediction's mean square, in which no target noise plays a part.

    The prediction is what the network gives: with ``v_prediction`` a velocity, the square of which is taken as it is.

    Args:
        output: Where it is differentiated; its function is always ``squared_output``.
        settings: The arguments of ``Trak``.
    """

    def __init__(self, output: Output = Output("squared_output"), **settings: Any) -> None:
        # Who asks for other draws names no function, and the default is the loss.
        super().__init__(output=replace(output, function="squared_output"), **settings)

    @property
    def base_name(self) -> str:
        """Return ``d-trak``."""
        return "d-trak"
