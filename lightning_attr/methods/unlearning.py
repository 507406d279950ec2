"""Attribution by unlearning: the measured loss deltas of every sample (AbU, section 3)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_attr.losses import delta_scores
from lightning_attr.methods.unlearned import Unlearned


class Unlearning(Unlearned):
    """Loss after unlearning minus loss before, for all queries in one pass; one loss sweep per query.

    Args:
        over_views: How views are combined; the paper takes the maximum and finds the mean similar.
        settings: The arguments of ``Unlearned``.
    """

    kind = "unlearned weights"

    def __init__(self, over_views: Literal["max", "mean"] = "max", **settings: Any) -> None:
        super().__init__(**settings)
        self.over_views: Literal["max", "mean"] = over_views

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the loss deltas."""
        return delta_scores(before, after, self.over_views)
