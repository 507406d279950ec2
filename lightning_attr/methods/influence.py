"""One-pass influence: unlearning to first order, for all queries at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_attr.curvature import Damping, load_curvature
from lightning_attr.methods.base import Batch, Context, plain
from lightning_attr.methods.gradient_method import GradientMethod, products


class Influence(GradientMethod):
    """``grad L(query)^T F^-1 grad L(sample)``: the loss delta of one small step of unlearning, to first order.

    The inverse curvature is applied to the queries' gradients once; one pass over the samples then scores all queries.
    With ``per_draw`` the product is taken at each draw and summed.

    Args:
        curvature: A curvature file: diagonal, K-FAC or EK-FAC.
        damping: Added to the curvature before it is inverted.
        settings: The arguments of ``GradientMethod``.
    """

    def __init__(self, curvature: str, damping: Damping = Damping(0.1, "mean"), **settings: Any) -> None:
        super().__init__(**settings)
        self.curvature = curvature
        self.damping = damping
        self._curvature = load_curvature(curvature)

    @property
    def base_name(self) -> str:
        """``influence-diagonal``, ``influence-kfac`` or ``influence-ekfac``."""
        return f"influence-{self._curvature.kind}"

    def settings(self) -> dict[str, Any]:
        """Return the settings, with those of the curvature in the place of its file's name."""
        return {**super().settings(), "curvature": plain({**self._curvature.settings, "kind": self._curvature.kind})}

    def prepare_queries(self, context: Context) -> None:
        """Apply the inverse curvature to the queries' gradients."""
        self._rows = [self._curvature.inverse(rows, self.damping) for rows in self.query_gradients(context)]

    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        parts = [products(rows, gradients) for rows, gradients in zip(self._rows, self.gradients(batch), strict=True)]
        return torch.stack(parts).sum(0)
