"""What is added to a curvature before it is inverted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_attr.errors import UserError


@dataclass(frozen=True)
class Damping:
    """What is added to the curvature before it is inverted.

    Args:
        value: The amount.
        rule: ``fixed``: the amount itself. ``mean``: that fraction of the layer's mean eigenvalue; of a diagonal
            curvature, whose entries are its eigenvalues, of the weight's mean entry. ``overall``: that fraction of the
            mean eigenvalue of all layers together, which suits weights whose curvatures differ by orders of magnitude,
            as those of adapters do: divided by its own alone, the flattest layer would move furthest.
    """

    value: float = 0.0
    rule: Literal["fixed", "mean", "overall"] = "fixed"

    def settled(self, layers: Collection[Tensor]) -> Damping:
        """Return the damping of each of several layers with these eigenvalues: what depends on all is known then."""
        if self.rule != "overall":
            return self
        count = sum(eigenvalues.numel() for eigenvalues in layers)
        return Damping(self.value * sum(float(eigenvalues.sum()) for eigenvalues in layers) / count)

    def of(self, eigenvalues: Tensor) -> Tensor:
        """Return the damping of one layer with these eigenvalues, a scalar.

        Raises:
            ValueError: It depends on other layers as well, see :meth:`settled`.
        """
        if self.rule == "overall":
            raise ValueError("an overall damping is not that of one layer, expected a settled one")
        scale = eigenvalues.mean() if self.rule == "mean" else eigenvalues.new_ones(())
        return self.value * scale

    def added(self, eigenvalues: Tensor, what: str) -> Tensor:
        """Return the damped eigenvalues, which can be divided by.

        Args:
            eigenvalues: Of one layer.
            what: What to call them, such as ``entries of to_k.weight``.

        Raises:
            UserError: Some are zero, and there is no damping.
        """
        damped = eigenvalues + self.of(eigenvalues)
        if not bool((damped > 0).all()):
            zeros = int((damped <= 0).sum())
            raise UserError(f"curvature: {zeros} {what} are zero; set a damping above 0")
        return damped
