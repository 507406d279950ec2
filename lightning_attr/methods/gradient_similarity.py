"""Inner product or cosine of gradients: influence without a curvature.

Shapes: Q queries, B samples.
"""

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
    def base_name(self) -> str:
        """Return ``gradient-dot`` or ``gradient-cosine``."""
        return f"gradient-{self.kind}"

    @property
    def is_influence(self) -> bool:
        """Return whether it is the inner product."""
        return self.kind == "dot"

    def prepare_queries(self, context: Context) -> None:
        """Keep the queries' gradients and their norms."""
        self._rows = self.query_gradients(context)
        parts = [part.flatten(1) for rows in self._rows for part in rows.values()]
        self._squared_norms = torch.stack([part.square().sum(1) for part in parts]).sum(0)

    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        by_draw = [
            (products(rows, gradients), squared_norms(gradients))
            for rows, gradients in zip(self._rows, self.gradients(batch), strict=True)
        ]
        dots_BQ, squares_B = (torch.stack(parts).sum(0) for parts in zip(*by_draw, strict=True))
        if self.kind == "dot":
            return dots_BQ
        norms_BQ = squares_B.sqrt()[:, None] * self._squared_norms.sqrt()
        return torch.where(norms_BQ > 0, dots_BQ / norms_BQ, 0)
