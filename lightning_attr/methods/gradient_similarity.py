"""Inner product or cosine of gradients: influence without a curvature."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_attr.gradients import squared_norms
from lightning_attr.methods.base import Batch, Context
from lightning_attr.methods.gradient_method import GradientMethod, products


class GradientSimilarity(GradientMethod):
    """The inner product of a query's gradient and a sample's, or their cosine.

    Args:
        kind: ``dot`` or ``cosine``. With ``per_draw``, the gradients of all draws count as one long gradient.
        settings: The arguments of ``GradientMethod``.
    """

    def __init__(self, kind: Literal["dot", "cosine"] = "dot", **settings: Any) -> None:
        super().__init__(**settings)
        self.kind = kind

    @property
    def name(self) -> str:
        """``gradient-dot`` or ``gradient-cosine``."""
        return f"gradient-{self.kind}"

    def prepare_queries(self, context: Context) -> None:
        """Keep the queries' gradients and their norms."""
        self._rows = self.query_gradients(context)
        self._norms = torch.stack([rows[name].flatten(1).square().sum(1) for rows in self._rows for name in rows]).sum(
            0
        )

    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        scores, norms = torch.zeros(()), torch.zeros(())
        for rows, gradients in zip(self._rows, self.gradients(batch), strict=True):
            scores = scores.to(gradients.text) + products(rows, gradients)
            norms = norms.to(gradients.text) + squared_norms(gradients)
        return scores / (norms.sqrt()[:, None] * self._norms.sqrt()) if self.kind == "cosine" else scores
