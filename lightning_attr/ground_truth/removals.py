"""Leave-K-out: what the removals that a sweep retrained without do to the queries.

Shapes: Q queries, M retrained models, K removal sizes, R random removals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_attr.ground_truth.metrics import attributability, difference_interval, mean_interval
from lightning_attr.ground_truth.pack import UNATTRIBUTED, Pack
from lightning_attr.ground_truth.records import Attributable, Compared, LossChangePoint, Removal, Smallest, compare


def attribution_methods(pack: Pack) -> list[str]:
    """Return the methods whose top was removed, in the order of the pack."""
    return list(dict.fromkeys(model.method for model in pack.models if model.method not in UNATTRIBUTED))


def removal_methods(pack: Pack) -> list[str]:
    """Return what samples were removed by, random removal last."""
    return [*attribution_methods(pack), *(["random"] if pack.rows("random") else [])]


def per_query(pack: Pack, values: Tensor, method: str, k: int) -> Tensor:
    """Average values [M, Q] over the models of a method and K, float64 [Q]; NaN where there is none.

    A model without the top of one query counts for that query only.
    """
    counted = torch.full_like(values, torch.nan)
    for row in _rows(pack, method, k):
        query = pack.models[row].query
        places = slice(None) if query is None else pack.query_id == query
        counted[row, places] = values[row, places]
    return counted.nanmean(0)


def compared_queries(pack: Pack, changes: Tensor, k: int) -> Tensor:
    """Return the queries that removals of K are compared on, bool [Q], given the loss changes [M, Q].

    They are those that any attribution method measured: random removal is measured on more, but is no yardstick there.
    All of them where no method measured any.
    """
    measured = torch.zeros(len(pack.query_id), dtype=torch.bool)
    for method in attribution_methods(pack):
        measured |= ~per_query(pack, changes, method, k).isnan()
    return measured if measured.any() else ~measured


def removals(pack: Pack) -> list[Removal]:
    """Return what each removal does, and which of the same K are alike within error."""
    changes = pack.loss_changes
    found = []
    for k in _ks(pack):
        methods = [method for method in removal_methods(pack) if _models(pack, method, k)]
        left_out = ~compared_queries(pack, changes, k)
        losses, deviations = (
            {method: per_query(pack, values, method, k).masked_fill(left_out, torch.nan) for method in methods}
            for values in (changes, pack.deviations)
        )
        compared = zip(methods, _compared_means(losses).values(), _compared_means(deviations).values(), strict=True)
        for method, loss, deviation in compared:
            queries = int((~losses[method].isnan()).sum())
            found.append(Removal(method, k, queries, _models(pack, method, k), loss, deviation))
    return found


def _ks(pack: Pack) -> list[int]:
    """Return the Ks that removals are compared at. Random ones of a group's size alone are the yardstick of that."""
    by_method = {model.k for model in pack.models if model.method not in UNATTRIBUTED}
    of_groups = {model.k for model in pack.models if model.method == "group"}
    random = {model.k for model in pack.models if model.method == "random"}
    return sorted(by_method | (random - of_groups))


def _rows(pack: Pack, method: str, k: int) -> list[int]:
    return [row for row in pack.rows(method) if pack.models[row].k == k]


def _models(pack: Pack, method: str, k: int) -> int:
    return len(_rows(pack, method, k))


def _compared_means(values: Mapping[str, Tensor]) -> dict[str, Compared]:
    return compare(
        {method: mean_interval(of_queries) for method, of_queries in values.items()},
        lambda a, b: int((~(values[a] - values[b]).isnan()).sum()),
        lambda a, b: difference_interval(values[a], values[b]),
    )


def noise_floor(pack: Pack) -> Removal | None:
    """Return what other training seeds alone do; None where the pack has none."""
    models = _models(pack, "full", 0)
    if not models:
        return None
    changes = per_query(pack, pack.loss_changes, "full", 0)
    deviations = per_query(pack, pack.deviations, "full", 0)
    means = [Compared(mean_interval(values), "unknown") for values in (changes, deviations)]
    return Removal("full", 0, int((~changes.isnan()).sum()), models, *means)


def attributability_of_queries(pack: Pack) -> list[Attributable]:
    """Return the smallest removals, by any attribution method, that move a query's loss more than noise does.

    Noise is every other training seed, or random removal: two standard deviations above its mean.
    """
    ks, methods = _ks(pack), attribution_methods(pack)
    if not methods or not (pack.rows("full") or pack.rows("random")):
        return []
    changes = pack.loss_changes
    moved = torch.stack(
        [_largest(torch.stack([per_query(pack, changes, method, k) for method in methods])) for k in ks], dim=1
    )
    seeds = _largest(changes[pack.rows("full")].abs())
    random = _two_deviations_above(changes[pack.rows("random")])
    beyond_seeds = _smallest(ks, moved, seeds)
    beyond_random = _smallest(ks, moved, random)
    measured = ~moved.isnan().all(1)
    records = zip(pack.query_id.tolist(), beyond_seeds, beyond_random, seeds.tolist(), strict=True)
    return [Attributable(*record) for record, known in zip(records, measured.tolist(), strict=True) if known]


def _smallest(ks: Sequence[int], moved: Tensor, floor: Tensor) -> list[Smallest]:
    """Return the attributability of each query, of [Q, K] and [Q]; unknown where there is nothing to compare."""
    comparable = ~(moved - floor[:, None]).isnan().all(1)
    smallest = attributability(ks, moved, floor)
    return [k if known else "unknown" for k, known in zip(smallest, comparable.tolist(), strict=True)]


def _two_deviations_above(changes: Tensor) -> Tensor:
    """Return the mean plus two standard deviations of each query, [Q] of [R, Q]; NaN with fewer than three values.

    The removals of all K are taken together: what K random samples matter is little beside the spread of the models.
    """
    known = (~changes.isnan()).sum(0)
    mean = changes.nanmean(0)
    variance = (changes - mean).square().nansum(0) / (known - 1).clamp(min=1)
    return (mean + 2 * variance.sqrt()).masked_fill(known < 3, torch.nan)


def _largest(values: Tensor) -> Tensor:
    """Return the largest known value of each query, [Q] of [any, Q]; NaN where none is."""
    nothing = values.new_full((1, values.shape[1]), -math.inf)
    largest = torch.cat([values.nan_to_num(nan=-math.inf), nothing]).amax(0)
    return largest.masked_fill(values.isnan().all(0), torch.nan)


def loss_change_points(pack: Pack) -> list[LossChangePoint]:
    """Return what the figure of loss change against K is drawn from; K is 0 where nothing was removed."""
    changes = pack.loss_changes
    compared = {k: compared_queries(pack, changes, k) for k in _ks(pack)}
    points = []
    for row, model in enumerate(pack.models):
        if model.method in ("subset", "group") or (model.k and model.k not in compared):
            continue
        shown = changes[row].masked_fill(~compared[model.k], torch.nan) if model.k else changes[row]
        for query, change in zip(pack.query_id.tolist(), shown.tolist(), strict=True):
            if model.query in (None, query) and math.isfinite(change):
                points.append(LossChangePoint(model.method, model.k, query, change))
    return points
