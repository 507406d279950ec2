"""Leave-K-out: what the removals that a sweep retrained without do to the queries.

Shapes: Q queries, M retrained models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_attr.evaluation.records import Attributable, Compared, Removal, compare
from lightning_attr.metrics import LossChangePoint
from lightning_attr.metrics.intervals import attributability, difference_interval, mean_interval
from lightning_attr.pack import Pack


def removal_methods(pack: Pack) -> list[str]:
    """Return what samples were removed by, in the order of the pack, random removal last."""
    methods = dict.fromkeys(model.method for model in pack.models if model.method not in ("subset", "full", "random"))
    return [*methods, *(["random"] if pack.rows("random") else [])]


def per_query(pack: Pack, values: Tensor, method: str, k: int) -> Tensor:
    """Average values [M, Q] over the models of a method and K, float64 [Q]; NaN where there is none.

    A model without the top of one query counts for that query only.
    """
    counted = torch.full_like(values, torch.nan)
    for row in pack.rows(method):
        model = pack.models[row]
        if model.k == k:
            places = slice(None) if model.query is None else pack.query_id == model.query
            counted[row, places] = values[row, places]
    return counted.nanmean(0)


def removals(pack: Pack) -> list[Removal]:
    """Return what each removal does, and which of the same K are alike within error."""
    changes = pack.loss_changes
    found = []
    for k in _ks(pack):
        methods = [method for method in removal_methods(pack) if _models(pack, method, k)]
        losses = _compared_means({method: per_query(pack, changes, method, k) for method in methods})
        deviations = _compared_means({method: per_query(pack, pack.deviations, method, k) for method in methods})
        for method in methods:
            queries = int((~per_query(pack, changes, method, k).isnan()).sum())
            found.append(Removal(method, k, queries, _models(pack, method, k), losses[method], deviations[method]))
    return found


def _ks(pack: Pack) -> list[int]:
    return sorted({model.k for model in pack.models if model.method not in ("subset", "full")})


def _models(pack: Pack, method: str, k: int) -> int:
    return sum(model.method == method and model.k == k for model in pack.models)


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
    """Return the smallest removal, by any attribution method, that moves a query's loss more than every other seed."""
    ks, methods = _ks(pack), [method for method in removal_methods(pack) if method != "random"]
    if not methods or not pack.rows("full"):
        return []
    changes = pack.loss_changes
    moved = torch.stack([_largest([per_query(pack, changes, method, k) for method in methods]) for k in ks], dim=1)
    floor = _largest(list(changes[pack.rows("full")].abs()))
    smallest = attributability(ks, moved, floor)
    measured = ~moved.isnan().all(1)
    return [
        Attributable(query, k, of_query)
        for query, k, of_query, known in zip(
            pack.query_id.tolist(), smallest, floor.tolist(), measured.tolist(), strict=True
        )
        if known
    ]


def _largest(values: Sequence[Tensor]) -> Tensor:
    """Return the largest known value of each query, [Q]; NaN where none is."""
    stacked = torch.stack(list(values))
    largest = stacked.nan_to_num(nan=-math.inf).amax(0)
    return largest.masked_fill(stacked.isnan().all(0), torch.nan)


def loss_change_points(pack: Pack) -> list[LossChangePoint]:
    """Return what the figure of loss change against K is drawn from; K is 0 where nothing was removed."""
    changes = pack.loss_changes
    points = []
    for row, model in enumerate(pack.models):
        if model.method == "subset":
            continue
        for query, change in zip(pack.query_id.tolist(), changes[row].tolist(), strict=True):
            if model.query in (None, query) and math.isfinite(change):
                points.append(LossChangePoint(model.method, model.k, query, change))
    return points
