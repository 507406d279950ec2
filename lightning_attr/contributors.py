"""Which contributors, how much, how sure: groups of training images by what they did to some queries.

Shapes: Q queries, N samples, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.grouping import Groups
from datamodules.store import Store
from lightning_attr.artifacts.scores import Scores
from lightning_attr.ground_truth.metrics import Interval, mean_interval
from lightning_attr.groups import beyond_chance, group_scores, reduction_of

#: The attribute in which sources keep what an image belongs to.
GROUPS = "groups"


class Contributor(NamedTuple):
    """A group of training images."""

    group: str
    images: int
    score: Interval
    """Mean over the queries of its score, the sum or the mean over its images."""
    share: Interval | None
    """Mean over the queries of its calibrated share; None where nothing is calibrated."""
    beyond_chance: float
    """How far the score lies beyond that of as many random images, in standard deviations; NaN where unknown."""
    first: int
    """Queries that it is the first for."""
    ranks: dict[str, int]
    """Its rank by the scores of other methods."""


def contributors(
    groups: Groups, scores: Scores, others: Mapping[str, Scores] | None = None, shares: Tensor | None = None
) -> list[Contributor]:
    """Return all groups, the largest score first; what has no group is last, so that sums add up, and has no rank.

    Args:
        groups: Of the samples of ``scores``, in their order.
        scores: Of the queries that are asked about.
        others: Scores of the same samples and queries by other methods, by their names.
        shares: The part of each sample in each query, [Q, N].
    """
    values = _values(scores, groups)
    parts = None if shares is None else group_scores(shares, groups)
    chance = beyond_chance(scores.scores.double().mean(0, keepdim=True), groups)[0]
    named = torch.from_numpy(groups.named)
    first = values.masked_fill(~named, -math.inf).argmax(1).bincount(minlength=len(groups.names))
    ranks = {name: _ranks(_values(other, groups).mean(0), named) for name, other in (others or {}).items()}
    order = sorted(
        range(len(groups.names)), key=lambda place: (not named[place], -float(values[:, place].mean()), place)
    )
    sizes = groups.sizes.tolist()
    return [
        Contributor(
            group=groups.names[place],
            images=sizes[place],
            score=mean_interval(values[:, place]),
            share=None if parts is None else mean_interval(parts[:, place]),
            beyond_chance=float(chance[place]),
            first=int(first[place]) if named[place] else 0,
            ranks={name: int(of_other[place]) for name, of_other in ranks.items() if named[place]},
        )
        for place in order
    ]


def _values(scores: Scores, groups: Groups) -> Tensor:
    return group_scores(scores.scores, groups, reduction_of(scores.method))


def _ranks(values: Tensor, named: Tensor) -> Tensor:
    """Return the rank of each group by its value, int64 [G], from 1; of equal values, the first group first."""
    order = values.masked_fill(~named, -math.inf).argsort(descending=True, stable=True)
    return order.argsort() + 1


def as_json(contributor: Contributor) -> dict[str, Any]:
    """Return a contributor as answers hold it; null is unknown."""
    record = {
        "group": contributor.group,
        "images": contributor.images,
        "score": contributor.score.estimate,
        "interval": _ends(contributor.score),
        "beyond_chance": contributor.beyond_chance if math.isfinite(contributor.beyond_chance) else None,
        "first": contributor.first,
        "ranks": contributor.ranks,
    }
    if contributor.share is not None:
        record |= {"share": contributor.share.estimate, "share_interval": _ends(contributor.share)}
    return record


def _ends(interval: Interval) -> list[float] | None:
    return [interval.low, interval.high] if math.isfinite(interval.low) else None


def own_grouping(store: Store) -> str | None:
    """Return the grouping that a store has from its source; None where that knew no groups."""
    has_groups = any(GROUPS in store.meta(position).attributes for position in range(len(store)))
    return GROUPS if has_groups else None
