"""Recall@K and average precision from nothing but the ranks of a query's exemplars.

A rank is how many samples of the gallery score higher, and how many the same, the exemplar itself included.
Equal scores are taken to stand in random order, and every value is the expectation over these orders: a method that
cannot tell samples apart gets what chance gets, wherever the exemplars lie in the store.

Shape suffixes: Q queries, G samples of a gallery, E exemplars. Queries with fewer exemplars than others have an
``equal`` of 0 in the columns that are left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_attr.ground_truth.metrics.functional import expect


class Ranks(NamedTuple):
    """Where exemplars stand, int64 ``[Q, E]`` each."""

    above: Tensor
    """How many samples of the gallery score strictly higher."""
    equal: Tensor
    """How many score the same, itself included; 0 where there is no exemplar."""


def exemplar_ranks(scores: Tensor, exemplars: Tensor) -> Ranks:
    """Return the ranks of exemplars among the samples of their gallery.

    Args:
        scores: Influence scores over a gallery, higher = more influential, no NaN, ``[Q, G]``.
        exemplars: The columns of the exemplars, int64 ``[E]``.

    >>> exemplar_ranks(torch.tensor([[0.9, 0.5, 0.5, 0.1]]), torch.tensor([2, 3]))
    Ranks(above=tensor([[1, 3]]), equal=tensor([[2, 1]]))

    """
    expect("scores", scores, (None, None))
    expect("exemplars", exemplars, (None,), torch.int64)
    own = scores[:, exemplars]
    above = torch.stack([(scores > each[:, None]).sum(1) for each in own.unbind(1)], dim=1)
    equal = torch.stack([(scores == each[:, None]).sum(1) for each in own.unbind(1)], dim=1)
    return Ranks(above, equal)


def all_tied(exemplars: Tensor, gallery: Tensor) -> Ranks:
    """Return the ranks of exemplars if nothing can be told apart: what is expected of random scores.

    Args:
        exemplars: How many exemplars each query has, int64 ``[Q]``.
        gallery: How large its gallery is, exemplars included, int64 ``[Q]``.

    >>> expected_recall(all_tied(torch.tensor([4]), torch.tensor([100])), k=5)
    tensor([0.0500], dtype=torch.float64)

    """
    held = torch.arange(int(exemplars.max())) < exemplars[:, None]
    return Ranks(torch.zeros_like(held, dtype=torch.int64), gallery[:, None] * held)


def expected_recall(ranks: Ranks, k: int) -> Tensor:
    """Return recall@K: exemplars among the K highest-scored samples / exemplars (AbC, retrieval metrics).

    The divisor is the number of exemplars even where it exceeds K, as in the paper.

    Args:
        ranks: Where the exemplars stand.
        k: How many samples are retrieved, at least 1.

    Returns:
        The recall expected over random orders of equal scores, float64 ``[Q]``, in [0, 1]; NaN without exemplars.

    >>> expected_recall(Ranks(torch.tensor([[1, 3]]), torch.tensor([[2, 1]])), k=2)
    tensor([0.2500], dtype=torch.float64)

    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    above, equal = _checked(ranks)
    held = equal > 0
    within = ((k - above) / equal).clamp(0, 1)  # of the ranks that those with this score share
    return within.where(held, 0.0).sum(1) / held.sum(1)


def expected_average_precision(ranks: Ranks) -> Tensor:
    """Return average precision over the whole gallery, whose mean over queries is mAP (AbC, the retrieval metrics).

    Without equal scores it is ``functional.average_precision``. Of T equal scores of which R are exemplars, below A
    samples of which F are, the i-th place is an exemplar's in R / T of the orders, and in those the precision there is
    ``(F + 1 + (i - 1) (R - 1) / (T - 1)) / (A + i)`` on average; the sum over i needs harmonic numbers alone.

    Args:
        ranks: Where the exemplars stand.

    Returns:
        The average precision expected over random orders of equal scores, float64 ``[Q]``; NaN without exemplars.

    >>> expected_average_precision(Ranks(torch.tensor([[0, 2]]), torch.tensor([[1, 1]])))
    tensor([0.8333], dtype=torch.float64)

    """
    above, equal = _checked(ranks)
    held = equal > 0
    level = above.masked_fill(~held, torch.inf)
    before = (level[:, None, :] < level[:, :, None]).sum(2)
    beside = (level[:, None, :] == level[:, :, None]).sum(2)
    harmonic = torch.digamma(above + equal + 1) - torch.digamma(above + 1)  # the sum over i of 1 / (A + i)
    rate = (beside - 1) / (equal - 1).clamp(min=1)
    precision = ((before + 1) * harmonic + rate * (equal - (above + 1) * harmonic)) / equal
    return precision.where(held, 0.0).sum(1) / held.sum(1)


def _checked(ranks: Ranks) -> Ranks:
    """Return ranks as float64."""
    expect("above", ranks.above, (None, None))
    expect("equal", ranks.equal, ranks.above.shape)
    return Ranks(ranks.above.double(), ranks.equal.double())
