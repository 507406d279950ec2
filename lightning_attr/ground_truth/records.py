"""What an evaluation against a pack says: records that JSON and tables are made of.

Shapes: M retrained models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from lightning_attr.artifacts import read_json
from lightning_attr.errors import UserError, quoted
from lightning_attr.ground_truth.metrics import Interval, Variances

Standing = Literal["best", "tie", "behind", "unknown"]
"""Beside the best: itself, different within error, worse, or not comparable."""

FEWEST = 5
"""Queries that two methods must share to be compared, and that the best must know where another does: fewer do not show
how much queries differ.
"""

Smallest = int | Literal["unknown"] | None
"""The smallest K whose removal moves a query's loss beyond something; None if none that was tried does."""


class LossChangePoint(NamedTuple):
    """The loss change of one query under one model that was retrained without K samples."""

    method: str
    k: int
    query_id: int
    loss_change: float


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


class SmallRemovals(NamedTuple):
    """The LDS of every method against models that were trained without K random samples."""

    k: int
    subsets: int
    repeats: int
    """Training seeds of each subset."""
    scored: list[Scored]
    ceiling: Interval | None
    """None where the subsets have one training seed only."""


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
    beyond_seeds: Smallest
    """Beyond the floor. It is strict where the models of a sweep share their seed, and with it most of their noise."""
    beyond_random: Smallest
    """Beyond the mean and two standard deviations of random removals, of all K. One method at one K exceeds that by
    chance about once in twenty to forty times; with several methods and Ks tried, more often.
    """
    floor: float
    """The largest loss change, up or down, by another training seed alone; NaN where there is none."""


class GroupChange(NamedTuple):
    """The loss change of one query without a group, and without as many random samples; NaN where unknown."""

    query: int
    loss_change: float
    random: float


class GroupRemoval(NamedTuple):
    """What the removal of a group does, on average over queries."""

    grouping: str
    group: str
    images: int
    models: int
    loss_change: Interval
    random: Interval
    """Of as many random samples; NaN where no model was trained without so many."""
    difference: Interval
    """The loss change minus that of random samples, query by query."""
    queries: list[GroupChange]


class GroupRanking(NamedTuple):
    """How a method ranks the groups that were removed, on average over the queries that it scores."""

    method: str
    grouping: str
    queries: int
    reduction: str
    """What became of the scores of a group's samples: their sum or their mean."""
    loss_change: Interval
    """Without the group that it ranks first for the query."""
    difference: Interval
    """That minus the loss change without as many random samples."""
    correlation: Interval
    """Spearman's rank correlation of scores and loss changes over the groups."""


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
    """By K, random removal last, of the queries that another removal of this K was measured on."""
    floor: Removal | None
    """Nothing removed, other training seeds."""
    attributability: list[Attributable]
    """Empty without removals by an attribution method, and without both other seeds and random removals."""
    prediction: Prediction | None
    loss_changes: list[LossChangePoint]
    groups: list[GroupRemoval] = []  # noqa: RUF012 (never changed; packs of before have none)
    """By grouping, the largest loss change first; empty where no group was removed, as the next."""
    group_rankings: list[GroupRanking] = []  # noqa: RUF012
    small_removals: list[SmallRemovals] = []  # noqa: RUF012
    """The smallest K first; of those alone that enough random subsets are without."""


def compare(
    intervals: Mapping[str, Interval], shared: Callable[[str, str], int], difference: Callable[[str, str], Interval]
) -> dict[str, Compared]:
    """Say how each method stands beside the best: a tie is a difference whose interval holds 0.

    Args:
        intervals: The mean of each method.
        shared: How many queries are known of two methods; of a method and itself, how many are known.
        difference: The first method's mean minus the second's, over these queries.
    """
    known = [method for method, interval in intervals.items() if math.isfinite(interval.estimate)]
    candidates = [method for method in known if shared(method, method) >= FEWEST] or known
    best = max(candidates, key=lambda method: intervals[method].estimate, default="")
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
    if difference.high < 0:  # ahead on the queries that both have, where the best is so by others
        return "unknown"
    return "tie" if difference.low <= 0 else "behind"


def share_of_ceiling(lds: Interval, ceiling: Interval | None) -> str:
    """Write an LDS in per cent of the ceiling; empty where there is no such share."""
    if ceiling is None or not ceiling.estimate > 0 or not math.isfinite(lds.estimate):
        return ""
    return f"{lds.estimate / ceiling.estimate:.0%}"


def as_json(value: Any) -> Any:
    """Return records as plain mappings and lists."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_json(part) for name, part in value._asdict().items()}
    return [as_json(part) for part in value] if isinstance(value, list) else value


def read_records(path: str | Path, kind: Any) -> Any:
    """Read what was written of :func:`as_json`; see :func:`from_json`.

    Raises:
        UserError: The file is missing, no JSON, or does not hold records of that type.
    """
    return from_json(str(path), read_json(path), kind)


def from_json(where: str, value: Any, kind: Any) -> Any:
    """Return plain mappings and lists that :func:`as_json` makes of records of a type, with NaN for unknown numbers.

    Args:
        where: Where the value stands, for messages.
        value: As read from JSON, where such a number is null.
        kind: The type: a record, a list or mapping of types, a union, or a plain one.

    Raises:
        UserError: They are none of that type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:  # and not a number that is unknown
            return None
        fitting = [each for each in inner if _fits(value, each)]
        _expect(where, value, bool(fitting), kind)
        return from_json(where, value, fitting[0])
    if origin is dict:
        _expect(where, value, isinstance(value, dict), kind)
        return {name: from_json(f"{where}.{name}", each, inner[1]) for name, each in value.items()}
    if origin is list:
        _expect(where, value, isinstance(value, list), kind)
        return [from_json(f"{where}[{place}]", each, inner[0]) for place, each in enumerate(value)]
    if hasattr(kind, "_fields"):
        whole = isinstance(value, dict) and {*value} | {*kind._field_defaults} == {*kind._fields}
        _expect(where, value, whole, kind)
        types = get_type_hints(kind)
        return {name: from_json(f"{where}.{name}", each, types[name]) for name, each in value.items()}
    _expect(where, value, _fits(value, kind), kind)
    return math.nan if kind is float and value is None else value


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a plain type, or of the outermost of a nested one."""
    if get_origin(kind) is Literal:
        return value in get_args(kind) and isinstance(value, str)
    if kind is float:
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    plain = dict if hasattr(kind, "_fields") else get_origin(kind) or kind
    return isinstance(value, plain) and not (isinstance(value, bool) and plain is int)


def _expect(where: str, value: Any, right: bool, kind: Any) -> None:
    if not right:
        raise UserError(f"{where}: found {quoted(value)}, expected {getattr(kind, '__name__', kind)}")
