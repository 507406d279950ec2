"""Metrics that check a ranking of groups against the groups that are known to be right, and what chance reaches.

The mean average precision of groups is that of ``ranking.MeanAveragePrecision``, with groups in the place of samples.

Shapes: B queries of a batch, Q queries, G groups.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_attr.ground_truth.metrics.functional import expect
from lightning_attr.ground_truth.metrics.per_query import PerQuery


def top_1(scores: Tensor, right: Tensor) -> Tensor:
    """Return whether the group of the highest score is a right one; of several highest, the share that is.

    Args:
        scores: Of groups, ``[Q, G]``.
        right: Which groups are known to be right, bool ``[Q, G]``.

    Returns:
        The value, ``[Q]``, in [0, 1]; NaN for a query with no right group or with a NaN score.

    >>> top_1(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([[True, False], [True, False]]))
    tensor([1.0000, 0.5000], dtype=torch.float64)

    """
    expect("scores", scores, (None, None))
    expect("right", right, tuple(scores.shape), torch.bool)
    highest = scores == scores.amax(1, keepdim=True)
    share = (highest & right).sum(1).double() / highest.sum(1)
    return share.masked_fill(scores.isnan().any(1) | ~right.any(1), torch.nan)


def top_1_by_chance(right: Tensor) -> Tensor:
    """Return the expected :func:`top_1` of a random order: the share of right groups, ``[Q]`` of bool ``[Q, G]``.

    >>> top_1_by_chance(torch.tensor([[True, False, False, False]]))
    tensor([0.2500], dtype=torch.float64)

    """
    expect("right", right, (None, None), torch.bool)
    return right.double().mean(1).masked_fill(~right.any(1), torch.nan)


def average_precision_by_chance(right: Tensor) -> Tensor:
    """Return the expected average precision of a random order, ``[Q]`` of bool ``[Q, G]``.

    With r right ones of G, rank k holds a right one with probability r / G, and of the k - 1 before it a share of
    (r - 1) / (G - 1) is right as well: the mean over ranks of (1 + (k - 1) (r - 1) / (G - 1)) / k.

    >>> average_precision_by_chance(torch.tensor([[True, False]]))
    tensor([0.7500], dtype=torch.float64)

    """
    expect("right", right, (None, None), torch.bool)
    groups = right.shape[1]
    ranks = torch.arange(1, groups + 1, dtype=torch.float64)
    others = (right.sum(1, keepdim=True).double() - 1) / max(groups - 1, 1)
    return ((1 + (ranks - 1) * others) / ranks).mean(1).masked_fill(~right.any(1), torch.nan)


class Top1(PerQuery):
    """Share of queries whose highest-scored group is a right one (see :func:`top_1`).

    >>> metric = Top1()
    >>> metric.update(torch.tensor([7]), torch.tensor([[0.9, 0.1]]), torch.tensor([[True, False]]))
    >>> metric.compute().mean
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("top_1", **kwargs)

    def update(self, query_id: Tensor, scores: Tensor, right: Tensor) -> None:
        """Add queries: ids int64 ``[B]``, scores of groups ``[B, G]``, the right ones bool ``[B, G]``."""
        self.record(query_id, top_1(scores, right))
