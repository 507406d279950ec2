"""Leave-group-out: what the removal of whole groups does to the queries, and which scores foretell it.

Shapes: Q queries, N samples, G removed groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_attr.artifacts.scores import Scores
from lightning_attr.ground_truth.metrics import difference_interval, mean_interval
from lightning_attr.ground_truth.metrics.functional import rank_correlation, subset_sums
from lightning_attr.ground_truth.pack import Pack
from lightning_attr.ground_truth.records import GroupChange, GroupRanking, GroupRemoval
from lightning_attr.groups import reduction_of


class _Removed(NamedTuple):
    """A group that was removed.

    Shapes: ``members`` bool [N]; ``changes`` and those without as many ``random`` samples, float64 [Q].
    """

    group: str
    members: Tensor
    models: int
    changes: Tensor
    random: Tensor


def group_removals(pack: Pack) -> list[GroupRemoval]:
    """Return what each removal of a group does, the largest loss change first."""
    queries = pack.query_id.tolist()
    found = [
        GroupRemoval(
            grouping=grouping,
            group=each.group,
            images=int(each.members.sum()),
            models=each.models,
            loss_change=mean_interval(each.changes),
            random=mean_interval(each.random),
            difference=difference_interval(each.changes, each.random),
            queries=list(map(GroupChange, queries, each.changes.tolist(), each.random.tolist())),
        )
        for grouping, groups in _by_grouping(pack)
        for each in groups
    ]
    return sorted(found, key=lambda each: (each.grouping, -each.loss_change.estimate, each.group))


def group_rankings(pack: Pack, scores: Mapping[str, Scores]) -> list[GroupRanking]:
    """Return how each method ranks the groups of each grouping that at least two were removed of."""
    return [
        _ranking(pack, grouping, groups, name, each)
        for grouping, groups in _by_grouping(pack)
        for name, each in scores.items()
        if len(groups) > 1
    ]


def _ranking(pack: Pack, grouping: str, groups: list[_Removed], name: str, scores: Scores) -> GroupRanking:
    rows = torch.searchsorted(pack.query_id, scores.query_id)
    changes, random = (torch.stack([getattr(each, what) for each in groups], 1)[rows] for what in ("changes", "random"))
    members, reduction = torch.stack([each.members for each in groups]), reduction_of(scores.method)
    predicted = subset_sums(scores.scores, members) / (1 if reduction == "sum" else members.sum(1))
    known = predicted.masked_fill(changes.isnan(), -torch.inf)  # of groups whose removal was measured on the query
    first = known.argmax(1, keepdim=True)
    top, by_chance = (values.gather(1, first).flatten() for values in (changes, random))
    return GroupRanking(
        method=name,
        grouping=grouping,
        queries=int((~top.isnan()).sum()),
        reduction=reduction,
        loss_change=mean_interval(top),
        difference=difference_interval(top, by_chance),
        correlation=mean_interval(rank_correlation(predicted, changes)),
    )


def _by_grouping(pack: Pack) -> Iterator[tuple[str, list[_Removed]]]:
    """Yield each grouping and the groups that were removed; models of one group are averaged."""
    changes = pack.loss_changes
    rows: dict[str, dict[str, list[int]]] = {}
    for row in pack.rows("group"):
        model = pack.models[row]
        rows.setdefault(model.grouping or "", {}).setdefault(model.group or model.name, []).append(row)
    random = {k: changes[[row for row in pack.rows("random") if pack.models[row].k == k]] for k in _sizes(pack)}
    for grouping, groups in rows.items():
        yield (
            grouping,
            [
                _Removed(
                    group,
                    ~pack.masks[of_group[0]],
                    len(of_group),
                    changes[of_group].nanmean(0),
                    random[pack.models[of_group[0]].k].nanmean(0),
                )
                for group, of_group in groups.items()
            ],
        )


def _sizes(pack: Pack) -> set[int]:
    return {pack.models[row].k for row in pack.rows("group")}
