"""What an evaluation against a pack says: records that JSON and tables are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from lightning_attr.metrics import LossChangePoint
from lightning_attr.metrics.intervals import Interval, Variances

Standing = Literal["best", "tie", "behind", "unknown"]
"""Beside the best: itself, different within error, worse, or not comparable."""

FEWEST = 5
"""Queries that two methods must share to be compared: fewer do not show how much queries differ."""


class Compared(NamedTuple):
    """A mean over queries and how it stands beside the best."""

    interval: Interval
    standing: Standing


class Scored(NamedTuple):
    """The LDS of one method."""

    method: str
    lds: Compared
    queries: int
    """How many the scores hold and the pack measured."""


class Removal(NamedTuple):
    """What the removal of K samples does, on average over queries."""

    method: str
    k: int
    queries: int
    models: int
    loss_change: Compared
    deviation: Compared


class Attributable(NamedTuple):
    """Whether single samples can be told to have made a query."""

    query: int
    k: int | None
    """The smallest removal that moves its loss beyond the floor; None if none that was tried does."""
    floor: float
    """The largest loss change, up or down, by another training seed alone."""


class Prediction(NamedTuple):
    """What the best method predicts of the subsets, for the query where its LDS is the median."""

    method: str
    query: int
    lds: float
    predicted: list[float]
    """The sum of scores over each subset, [M]."""
    measured: list[float]
    """The loss under the model trained on it, [M]."""


class Evaluated(NamedTuple):
    """All that a pack says, alone and of scores."""

    queries: int
    subsets: int
    repeats: int
    """Training seeds of each subset."""
    scored: list[Scored]
    ceiling: Interval | None
    """None where the subsets have one training seed only."""
    variances: Variances | None
    removals: list[Removal]
    """By K, random removal last."""
    floor: Removal | None
    """Nothing removed, other training seeds."""
    attributability: list[Attributable]
    """Empty without a floor or without removals."""
    prediction: Prediction | None
    loss_changes: list[LossChangePoint]


def compare(
    intervals: Mapping[str, Interval], shared: Callable[[str, str], int], difference: Callable[[str, str], Interval]
) -> dict[str, Compared]:
    """Say how each method stands beside the best: a tie is a difference whose interval holds 0.

    Args:
        intervals: The mean of each method.
        shared: How many queries are known of two methods.
        difference: The first method's mean minus the second's, over these queries.
    """
    known = [method for method, interval in intervals.items() if math.isfinite(interval.estimate)]
    best = max(known, key=lambda method: intervals[method].estimate, default="")
    standings: dict[str, Standing] = dict.fromkeys(intervals, "unknown")
    for method in known:
        if method == best:
            standings[method] = "best"
        elif shared(best, method) >= FEWEST:
            standings[method] = _standing(difference(best, method))
    return {method: Compared(interval, standings[method]) for method, interval in intervals.items()}


def _standing(difference: Interval) -> Standing:
    if not math.isfinite(difference.low):
        return "unknown"
    return "tie" if difference.low <= 0 <= difference.high else "behind"


def as_json(value: Any) -> Any:
    """Return records as plain mappings and lists."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_json(part) for name, part in value._asdict().items()}
    return [as_json(part) for part in value] if isinstance(value, list) else value
