"""An evaluation against a pack as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from lightning_attr.ground_truth import Evaluated
from lightning_attr.ground_truth.metrics import Interval
from lightning_attr.ground_truth.records import Compared, Removal, Smallest, share_of_ceiling


def tables(evaluated: Evaluated) -> Iterator[Table]:
    """Yield a table for everything that the pack says something about."""
    if evaluated.scored:
        yield lds_table(evaluated)
    if evaluated.removals:
        yield removal_table(evaluated)
    if evaluated.groups:
        yield group_table(evaluated)
    if evaluated.group_rankings:
        yield group_ranking_table(evaluated)
    if evaluated.attributability:
        yield attributability_table(evaluated)
    yield ground_truth_table(evaluated)


def lds_table(evaluated: Evaluated) -> Table:
    """Return the LDS of every method, the best first, its ceiling, and both at each small removal."""
    title = "LDS, mean over queries [95% interval], and its share of the ceiling"
    smaller = [f"without {each.k}" for each in evaluated.small_removals]
    table = _table(title, "method", "LDS", "share", *smaller, "queries")
    at_removal = [{each.method: each.lds for each in small.scored} for small in evaluated.small_removals]
    for each in sorted(evaluated.scored, key=lambda each: _order(each.lds.interval.estimate)):
        table.add_row(
            Text(each.method),
            _compared(each.lds, 3),
            share_of_ceiling(each.lds.interval, evaluated.ceiling),
            *(_compared(lds[each.method], 3) for lds in at_removal),
            f"{each.queries} of {evaluated.queries}",
        )
    ceilings = [evaluated.ceiling, *(small.ceiling for small in evaluated.small_removals)]
    if any(ceilings):
        first, *others = ["" if ceiling is None else write(ceiling, 3) for ceiling in ceilings]
        table.add_row("ceiling", first, "", *others, str(evaluated.queries), style="dim")
    return table


def removal_table(evaluated: Evaluated) -> Table:
    """Return the loss change and generation deviation for each K, and what chance and other seeds do."""
    columns = ("removed by", "K", "loss change", "generation deviation", "models", "queries")
    table = _table("Leave-K-out, mean over queries [95% interval]", *columns)
    decimals = [
        _decimals([getattr(removal, name).interval for removal in evaluated.removals])
        for name in ("loss_change", "deviation")
    ]
    for _, removals in groupby(evaluated.removals, key=lambda removal: removal.k):
        for removal in removals:
            table.add_row(*_removal(removal, evaluated.queries, decimals))
        table.add_section()
    if evaluated.floor is not None:
        table.add_row(*_removal(evaluated.floor, evaluated.queries, decimals), style="dim")
    return table


def _removal(removal: Removal, queries: int, decimals: Sequence[int]) -> list[Text | str]:
    name = "other seeds" if removal.k == 0 else removal.method
    compared = [_compared(removal.loss_change, decimals[0]), _compared(removal.deviation, decimals[1])]
    return [Text(name), str(removal.k), *compared, str(removal.models), f"{removal.queries} of {queries}"]


def group_table(evaluated: Evaluated) -> Table:
    """Return the loss change without each group, and without as many random images."""
    columns = ("group", "images", "loss change", "as many random", "difference", "models")
    table = _table("Leave-group-out, mean over queries [95% interval]", *columns)
    decimals = _decimals([each.loss_change for each in evaluated.groups])
    for each in evaluated.groups:
        intervals = [write(interval, decimals) for interval in (each.loss_change, each.random, each.difference)]
        table.add_row(Text(f"{each.grouping}: {each.group}"), str(each.images), *intervals, str(each.models))
    return table


def group_ranking_table(evaluated: Evaluated) -> Table:
    """Return what the removal of each method's first group does, and whether its scores foretell the loss changes."""
    columns = ("groups ranked by", "loss change", "beyond as many random", "rank correlation", "queries")
    table = _table("Without the group that is ranked first, mean over queries [95% interval]", *columns)
    decimals = _decimals([each.loss_change for each in evaluated.group_rankings])
    for each in sorted(evaluated.group_rankings, key=lambda each: _order(each.loss_change.estimate)):
        table.add_row(
            Text(f"{each.method}, {each.reduction} by {each.grouping}"),
            write(each.loss_change, decimals),
            write(each.difference, decimals),
            write(each.correlation, 3),
            f"{each.queries} of {evaluated.queries}",
        )
    return table


def _decimals(intervals: Sequence[Interval]) -> int:
    """Return the decimals that give the largest estimate three digits."""
    largest = max((abs(each.estimate) for each in intervals if math.isfinite(each.estimate)), default=0.0)
    return max(0, 2 - math.floor(math.log10(largest))) if largest else 2


def _compared(compared: Compared, decimals: int) -> str:
    standing = f" {compared.standing}" if compared.standing != "unknown" else ""
    return write(compared.interval, decimals) + standing


def attributability_table(evaluated: Evaluated) -> Table:
    """Return for every query the smallest removal that matters, by either measure of noise."""
    title = "Attributability, smallest K whose removal moves the loss"
    table = _table(title, "query", "beyond other seeds", "beyond random removal", "noise floor")
    for each in evaluated.attributability:
        floor = f"{each.floor:.3g}" if math.isfinite(each.floor) else "unknown"
        table.add_row(str(each.query), _smallest(each.beyond_seeds), _smallest(each.beyond_random), floor)
    return table


def _smallest(k: Smallest) -> str:
    return "no set of these sizes" if k is None else str(k)


def ground_truth_table(evaluated: Evaluated) -> Table:
    """Return how much there is to check against, and how noisy it is."""
    table = _table("The ground truth", "what", "value")
    table.add_row("queries", str(evaluated.queries))
    table.add_row("random subsets x training seeds", f"{evaluated.subsets} x {evaluated.repeats}")
    for small in evaluated.small_removals:
        table.add_row(f"random removals of {small.k} x training seeds", f"{small.subsets} x {small.repeats}")
    if evaluated.variances is not None:
        total = sum(evaluated.variances)
        for name, value in evaluated.variances._asdict().items():
            share = f" ({value / total:.0%})" if total > 0 else ""
            table.add_row(f"variance of a query's loss by {name}", f"{value:.3g}{share}")
    if evaluated.ceiling is not None:
        table.add_row("ceiling of LDS", write(evaluated.ceiling, 3))
    return table


def write(interval: Interval, decimals: int) -> str:
    """Write an estimate with its interval."""
    if not math.isfinite(interval.estimate):
        return "unknown"
    estimate = f"{interval.estimate:+.{decimals}f}"
    if not math.isfinite(interval.low):
        return estimate
    return f"{estimate} [{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"


def _order(estimate: float) -> float:
    return math.inf if math.isnan(estimate) else -estimate


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=Text(title, style="bold"), title_justify="left")
