"""Two rankings of the same queries, compared over the models that made these.

Shapes: M models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from lightning_attr.ground_truth.metrics import Interval, difference_interval, mean_interval


class Found(NamedTuple):
    """How well the exemplars of each model are found: means over its queries, float64 [M] each."""

    mean_average_precision: Tensor
    recall_at_10: Tensor


def compared(frozen: Found, tuned: Found) -> dict[str, dict[str, Interval]]:
    """Return each metric of both and their difference, with intervals over models.

    The queries of one model are not independent, so that models are what is drawn anew.
    """
    return {
        name: {"frozen": mean_interval(a), "tuned": mean_interval(b), "difference": difference_interval(b, a)}
        for name, a, b in zip(Found._fields, frozen, tuned, strict=True)
    }


def sentences(metrics: Mapping[str, Mapping[str, Interval]]) -> list[tuple[str, str]]:
    """Say of each metric what tuning changed, and whether that is beyond error."""
    rows = []
    for name, intervals in metrics.items():
        change = intervals["difference"]
        means = f"{intervals['frozen'].estimate:.3f} as it is, {intervals['tuned'].estimate:.3f} tuned"
        if math.isnan(change.low):
            rows.append((name, f"{means}: of one model, so that nobody knows the error"))
            continue
        verdict = "better" if change.low > 0 else "worse" if change.high < 0 else "no difference beyond error"
        interval = f"95% interval {change.low:+.3f} to {change.high:+.3f}"
        rows.append((name, f"{means}: {change.estimate:+.3f}, {interval}, {verdict}"))
    return rows
