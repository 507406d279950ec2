"""Groups that are known to be right, and how scores rank them: top-1 and mAP beside what chance and size reach.

Shapes: Q queries, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.grouping import Groups, groups_of, read_groups
from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.artifacts.scores import Scores
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics.functional import average_precision
from lightning_attr.ground_truth.metrics.groups import average_precision_by_chance, top_1, top_1_by_chance
from lightning_attr.groups import Reduction, group_scores, reduction_of


@dataclass(frozen=True)
class RightGroups:
    """Which groups are known to have made which queries; named in one of two ways.

    Args:
        store: The store that was scored.
        grouping: An attribute of its samples, such as ``artist``, or a file of clusters.
        queries: The query store, whose queries have the attribute as well.
        of: The right groups by the ids of the queries. Queries that are not named are left out.
        reduction: ``sum`` or ``mean`` over a group's samples; None is the mean for similarities and cosines.

    Raises:
        UserError: None or both ways are given.
    """

    store: InputPath
    grouping: InputPath
    queries: InputPath | None = None
    of: dict[int, list[str]] | None = None
    reduction: Reduction | None = None

    def __post_init__(self) -> None:
        if (self.queries is None) == (self.of is None):
            found = "both" if self.of is not None else "nothing"
            raise UserError(f"groups: found {found}, expected exactly one of queries, of")


class RankedGroups(NamedTuple):
    """The groups of a file of scores, and which of them are right."""

    method: str
    grouping: str
    query_id: Tensor
    """Int64 [Q]."""
    scores: Tensor
    """Float64 [Q, G]."""
    right: Tensor
    """Bool [Q, G]."""
    sizes: Tensor
    """Samples of each group, int64 [G]."""

    @property
    def label(self) -> str:
        """Return the method and the grouping, such as "trak (artist)"."""
        return f"{self.method} ({self.grouping})"

    def baselines(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return top-1 and average precision [Q] of a random order of groups, and of the largest group first."""
        size = self.sizes.expand_as(self.right).double()
        return {
            f"random order ({self.grouping})": {
                "top_1": top_1_by_chance(self.right),
                "mean_average_precision": average_precision_by_chance(self.right),
            },
            f"largest first ({self.grouping})": {
                "top_1": top_1(size, self.right),
                "mean_average_precision": average_precision(size, self.right),
            },
        }


def ranked_groups(path: str, known: RightGroups) -> RankedGroups:
    """Rank the groups of every query of a file of scores that has right ones.

    Raises:
        UserError: The file holds only the top of each query, is of another store, or no query has a right group.
    """
    scores, store = Scores.load(path), Store(known.store)
    check_made_from(path, scores.settings, "store", store.digest, store.path)
    groups = read_groups(store, known.grouping, scores.sample_id.numpy())
    right = _right(known, groups, scores.query_id)
    named = torch.from_numpy(groups.named)
    rows = right.any(1)
    if not rows.any():
        raise UserError(f"model.groups: found no query of {path} with a group of {known.grouping} that samples have")
    values = group_scores(scores.scores[rows], groups, known.reduction or reduction_of(scores.method))
    sizes = torch.from_numpy(groups.sizes)[named]
    return RankedGroups(
        scores.method, groups.grouping, scores.query_id[rows], values[:, named], right[rows][:, named], sizes
    )


def _right(known: RightGroups, groups: Groups, query_id: Tensor) -> Tensor:
    """Return the right groups of every query, bool [Q, G]; none of a query that names none.

    Raises:
        UserError: A name that was given by hand is none of a group.
    """
    named = known.of
    if named is None:
        assert known.queries is not None
        queries = Store(known.queries)
        positions = queries.positions(query_id.numpy())
        metas = [queries.meta(int(position)) for position in positions]
        found = [groups_of(meta, known.grouping) for meta in metas]
    else:
        for name in {name for names in named.values() for name in names}:
            groups.members(name)
        found = [named.get(query, []) for query in query_id.tolist()]
    return torch.tensor([[name in names for name in groups.names] for names in found], dtype=torch.bool)
