"""How good is the ground truth itself? What retraining with other seeds says about the noise of retrained models.

Shape suffixes: Q queries, M models (training subsets), S training seeds, K removal sizes, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_attr.ground_truth.metrics.bootstrap import (
    Interval,
    interval_over_queries_and_models,
    resampled_correlation,
    resampled_ranks,
)
from lightning_attr.ground_truth.metrics.functional import expect


def lds_ceiling(losses: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the ceiling of the LDS: what the true expected losses would score against losses of this noise.

    A measured loss is the expected loss of its subset plus noise of the training seed. The agreement of two seeds over
    subsets, rho, is the share of the first in the variance of a loss; that share in the mean of S seeds, its
    reliability, is S rho / (1 + (S - 1) rho) (Spearman 1910, Brown 1910), and the expected losses correlate with that
    mean by the root of the reliability (the attenuation of Spearman 1904). Rho is the mean of Spearman's rank
    correlations over all pairs of seeds and over queries; a negative one counts as 0.

    Limits: the formulas are exact for Pearson's correlation and approximate for ranks. Rho is averaged over queries
    before the root is taken, because that of one query is too noisy; so where queries differ in reliability the ceiling
    is too high: by 0.02 where their noise varies by a factor of 1.5, by 0.08 at 2.2 (simulated). What all seeds share,
    such as the draws on which the losses are measured, counts as signal.

    Args:
        losses: Loss of each query under each of the same models, trained with each seed, ``[S, Q, M]``.
        level: The probability that the interval shall cover.
        resamples: Number of bootstrap resamples of queries and models.
        seed: Seed of the resamples.

    Returns:
        The ceiling of LDS against the mean over all S seeds, in [0, 1], with its interval over the queries known under
        all seeds and models; the ends are NaN for fewer than two of them.

    Raises:
        ValueError: There are fewer than two seeds.

    >>> lds_ceiling(torch.tensor([[[1.0, 2.0, 3.0]] * 2, [[1.0, 2.0, 3.0]] * 2])).estimate
    1.0

    """
    expect("losses", losses, (None, None, None))
    seeds, _, models = losses.shape
    if seeds < 2:
        raise ValueError(f"losses has {seeds} training seeds, expected at least 2")
    losses = losses.double().cpu()
    return interval_over_queries_and_models(
        lambda counts: _agreement(losses, counts),
        models=models,
        level=level,
        resamples=resamples,
        seed=seed,
        of_mean=lambda rho: (seeds * rho.clamp(0, 1) / (1 + (seeds - 1) * rho.clamp(0, 1))).sqrt(),
    )


def _agreement(losses: Tensor, counts: Tensor) -> Tensor:
    """Return the mean rank correlation over pairs of seeds in each resample, ``[R, Q]``."""
    columns = []
    for of_query in losses.unbind(1):
        ranks = [resampled_ranks(of_seed, counts) for of_seed in of_query]
        pairs = [resampled_correlation(a, b, counts) for a, b in combinations(ranks, 2)]
        columns.append(torch.stack(pairs).mean(0))
    return torch.stack(columns, dim=1) if columns else counts.new_empty(len(counts), 0)


class Variances(NamedTuple):
    """Where the variance of a query's loss over retrained models comes from, in squared units of the loss."""

    data: float
    """Of the training subset: what an attribution can predict."""
    seed: float
    """Of the training seed, equal for all subsets: it moves no ranking of models that share their seed."""
    rest: float
    """Of neither alone: how the seed changes what a subset does. It is the noise of the ground truth."""


def variance_components(losses: Tensor) -> Variances:
    """Split the variance of a query's loss over subsets and training seeds, mean over queries.

    Two-way analysis of variance with random effects and one model per cell: mean squares are set equal to their
    expectations. Such estimates can fall below 0 by chance; a negative mean over queries counts as 0.

    Args:
        losses: Loss of each query under each of the same subsets, trained with each seed, ``[S, Q, M]``.

    Returns:
        The three components over the queries known under all seeds and subsets; NaN if there is none, and with fewer
        than two seeds or two subsets.

    >>> variance_components(torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]]))
    Variances(data=2.0, seed=0.0, rest=0.0)

    """
    expect("losses", losses, (None, None, None))
    seeds, _, models = losses.shape
    # Where there is one alone, what should be 0 / 0 is rounding / 0: infinite.
    of_data, of_seed = (count - 1 if count > 1 else math.nan for count in (models, seeds))
    losses = losses.double()
    mean_of_data, mean_of_seed = losses.mean(0, keepdim=True), losses.mean(2, keepdim=True)
    grand_mean = losses.mean((0, 2), keepdim=True)
    data = seeds * (mean_of_data - grand_mean).square().sum((0, 2)) / of_data
    seed = models * (mean_of_seed - grand_mean).square().sum((0, 2)) / of_seed
    residual = losses - mean_of_data - mean_of_seed + grand_mean
    rest = residual.square().sum((0, 2)) / (of_seed * of_data)
    components = torch.stack([(data - rest) / seeds, (seed - rest) / models, rest])  # [3, Q]
    return Variances(*components.nanmean(1).clamp(min=0).tolist())


def attributability(ks: Sequence[int], loss_changes: Tensor, floor: Tensor) -> list[int | None]:
    """Return the smallest K whose removal moves a query's loss beyond the noise floor.

    Args:
        ks: How many samples were removed, ascending.
        loss_changes: Loss change of each query at each K, ``[Q, K]``; NaN, not measured, never counts.
        floor: The loss change of each query that noise alone reaches, ``[Q]``, or ``[Q, K]`` where it differs between
            the Ks; NaN, not known, is never exceeded.

    Returns:
        A K of each query; None where no removal that was measured exceeds the floor.

    Raises:
        ValueError: The Ks do not ascend.

    >>> attributability([10, 40], torch.tensor([[0.3, 0.2], [0.0, 0.2], [0.0, 0.1]]), torch.tensor([0.1, 0.1, 0.1]))
    [10, 40, None]

    """
    if any(k >= following for k, following in pairwise(ks)):
        raise ValueError(f"ks is {list(ks)}, expected ascending numbers")
    expect("loss_changes", loss_changes, (None, len(ks)))
    expect("floor", floor, tuple(loss_changes.shape[: 2 if floor.ndim == 2 else 1]))
    beyond = (loss_changes > (floor if floor.ndim == 2 else floor[:, None])).tolist()
    return [next((k for k, moved in zip(ks, row, strict=True) if moved), None) for row in beyond]
