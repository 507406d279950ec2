"""The table of a set: how well each method finds the exemplars of customised models, by kind of prompt.

Shapes: Q queries, E the most exemplars of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_attr.abc.ranks import AbcRanks, MethodRanks
from lightning_attr.abc.set import CustomModel, of_split
from lightning_attr.ground_truth.metrics import (
    Interval,
    Ranks,
    all_tied,
    difference_interval,
    expected_average_precision,
    expected_recall,
    mean_interval,
)
from lightning_attr.ground_truth.records import Compared, compare
from lightning_attr.ground_truth.tables import write

#: How many samples are retrieved, as the paper has it.
KS = (5, 10, 100)

CHANCE = "chance"

#: What is no attribution but says the same of all queries of a model, see :class:`~lightning_attr.methods.Learned`.
CONTROL = "learned"


class Line(NamedTuple):
    """What is measured of one method on the queries of a category and a kind of prompt."""

    category: str
    kind: str
    method: str
    distractors: int
    models: int
    queries: int
    """How many it has scored."""
    of_queries: int
    """How many there are."""
    recall_at_5: Compared
    recall_at_10: Compared
    recall_at_100: Compared
    average_precision: Compared
    seconds: float | None
    """Of the runs that scored, by query of theirs; None where that is not known, and of chance."""


class Asked(NamedTuple):
    """The queries of a category and a kind of prompt."""

    category: str
    kind: str
    query_id: Tensor
    """Ascending, int64 [Q]."""
    model: Tensor
    """Which model made each, int64 [Q]."""
    exemplars: Tensor
    """How many each has, int64 [Q]."""


def lines(found: AbcRanks, split: str | None = None) -> list[Line]:
    """Measure all methods, those of most average precision first, and chance in every gallery.

    Args:
        found: The ranks of exemplars.
        split: The models to look at; None is all.

    Raises:
        UserError: There are no models of the split.
    """
    return [line for asked in _asked(of_split(found.models, split)) for line in _lines(found.methods, asked)]


def _asked(models: Sequence[CustomModel]) -> Iterator[Asked]:
    by_category = groupby(sorted(models, key=lambda model: model.category), key=lambda model: model.category)
    for category, group in by_category:
        members = list(group)
        for kind in sorted({kind for model in members for kind in model.queries}):
            made = sorted(
                (query, place, len(model.exemplars))
                for place, model in enumerate(members)
                for query in model.queries.get(kind, ())
            )
            yield Asked(category, kind, *torch.tensor(made, dtype=torch.int64).reshape(-1, 3).unbind(1))


def _lines(methods: Sequence[MethodRanks], asked: Asked) -> Iterator[Line]:
    """Yield the lines of all methods; those whose galleries are alike are compared, but for the control."""
    for distractors in sorted({each.distractors for each in methods}, reverse=True):
        alike = [each for each in methods if each.distractors == distractors]
        values = {each.method: _values(_of_queries(each, asked.query_id)) for each in alike}
        chance = _values(all_tied(asked.exemplars, asked.exemplars + distractors))
        compared = [_compared({name: each[measure] for name, each in values.items()}, asked) for measure in chance]
        rows = []
        for each in alike:
            measured = {name: by_method[each.method] for name, by_method in zip(chance, compared, strict=True)}
            scored = ~values[each.method]["average_precision"].isnan()
            seconds = None if each.seconds is None else each.seconds / len(each.query_id)
            rows.append(_line(asked, scored, each.method, distractors, measured, seconds))
        yield from sorted(rows, key=_order)
        expected = {name: Compared(_exact(value), "unknown") for name, value in chance.items()}
        yield _line(asked, torch.ones_like(asked.query_id, dtype=torch.bool), CHANCE, distractors, expected, None)


def _line(
    asked: Asked, scored: Tensor, method: str, distractors: int, measured: Mapping[str, Compared], seconds: float | None
) -> Line:
    counts = {"models": _count(asked.model[scored]), "queries": int(scored.sum()), "of_queries": len(scored)}
    named = {"category": asked.category, "kind": asked.kind, "method": method, "distractors": distractors}
    return Line(**named, **counts, **measured, seconds=seconds)  # type: ignore[arg-type]


def _exact(values: Tensor) -> Interval:
    """Return the mean of what is known exactly of every query."""
    return Interval(values.mean().item(), math.nan, math.nan)


def _count(made_by: Tensor) -> int:
    return len(torch.unique(made_by))


def _order(line: Line) -> float:
    estimate = line.average_precision.interval.estimate
    return math.inf if math.isnan(estimate) else -estimate


def _of_queries(each: MethodRanks, query_id: Tensor) -> Ranks:
    """Return the ranks of some queries; no exemplars of those that are not scored."""
    at = torch.searchsorted(each.query_id, query_id.contiguous()).clamp(max=len(each.query_id) - 1)
    known = (each.query_id[at] == query_id)[:, None]
    return Ranks(each.ranks.above[at] * known, each.ranks.equal[at] * known)


def _values(ranks: Ranks) -> dict[str, Tensor]:
    """Return what is measured, by name; NaN of queries without exemplars."""
    recall = {f"recall_at_{k}": expected_recall(ranks, k) for k in KS}
    return {**recall, "average_precision": expected_average_precision(ranks)}


def _compared(values: Mapping[str, Tensor], asked: Asked) -> dict[str, Compared]:
    """Return the mean of each method and how it stands beside the best, with intervals over models."""
    known = {method: ~each.isnan() for method, each in values.items()}
    intervals = {method: mean_interval(each, made_by=asked.model) for method, each in values.items()}
    control = {CONTROL: Compared(intervals.pop(CONTROL), "unknown")} if CONTROL in intervals else {}
    return control | compare(
        intervals,
        shared=lambda one, other: _count(asked.model[known[one] & known[other]]),
        difference=lambda one, other: difference_interval(values[one], values[other], made_by=asked.model),
    )


def tables(measured: Sequence[Line]) -> Iterator[Table]:
    """Yield a table for each category, with a section for each kind of prompt."""
    for category, of_category in groupby(measured, key=lambda line: line.category):
        held = list(of_category)
        several = len({line.distractors for line in held}) > 1
        title = f"{category}: recall and mAP of exemplars, mean over queries [95% interval over models]"
        if not several:
            title += f", {held[0].distractors:,} distractors"
        columns = ("method", "prompts", *(f"recall@{k}" for k in KS), "mAP", "seconds a query", "queries", "models")
        table = Table(*columns, title=Text(title, style="bold"), title_justify="left")
        for _, of_kind in groupby(held, key=lambda line: line.kind):
            for line in of_kind:
                name = f"{line.method} ({line.distractors:,} distractors)" if several else line.method
                table.add_row(Text(name), *_cells(line), style="dim" if line.method in (CHANCE, CONTROL) else None)
            table.add_section()
        yield table


def _cells(line: Line) -> Iterator[str]:
    yield line.kind
    for each in (line.recall_at_5, line.recall_at_10, line.recall_at_100):
        yield write(each.interval, 3).replace("+", "")
    standing = line.average_precision.standing
    yield write(line.average_precision.interval, 3).replace("+", "") + (f" {standing}" if standing != "unknown" else "")
    yield "" if line.seconds is None else f"{line.seconds:.3g}"
    yield f"{line.queries} of {line.of_queries}"
    yield str(line.models)
