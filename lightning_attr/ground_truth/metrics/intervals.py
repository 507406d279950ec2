"""Intervals of what is measured about attributions, so that a lucky draw of queries or models is not taken for skill.

All are bootstrap intervals, drawn by a generator of their own: equal inputs give equal intervals. They come out a
little narrow for few queries: with twenty, a 95% interval of a mean covers about 93%.

Shape suffixes: Q queries, N samples, M retrained models, S training seeds, R resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attr.ground_truth.metrics.bootstrap import (
    Interval,
    interval_over_queries,
    interval_over_queries_and_models,
    resampled_correlation,
    resampled_ranks,
)
from lightning_attr.ground_truth.metrics.functional import expect, subset_sums


def mean_interval(
    values: Tensor,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    made_by: Tensor | None = None,
) -> Interval:
    """Return the mean over queries and its interval, leaving out NaN.

    Args:
        values: One value per query, ``[Q]``.
        level: The probability that the interval shall cover.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        made_by: Which customised model made each query, integers ``[Q]``: queries of one model share their exemplars
            and err together, so that whole models are resampled. None is one by one.

    Returns:
        The interval, in the units of the values; its ends are NaN for fewer than two known values, or models of them.

    >>> mean_interval(torch.tensor([2.0, 2.0, torch.nan]))
    Interval(estimate=2.0, low=2.0, high=2.0)

    """
    expect("values", values, (None,))
    if made_by is not None:
        expect("made_by", made_by, values.shape)
    return interval_over_queries(values, level=level, resamples=resamples, seed=seed, made_by=made_by)


def difference_interval(
    a: Tensor,
    b: Tensor,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    made_by: Tensor | None = None,
) -> Interval:
    """Return the mean over queries of a - b and its interval; the two tie if it contains 0.

    The pairs stay together, which takes out how much the queries differ among themselves: far narrower than comparing
    two intervals of means.

    Args:
        a: One value per query, ``[Q]``.
        b: The values of the same queries, ``[Q]``.
        level: The probability that the interval shall cover.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        made_by: Which customised model made each query, as of :func:`mean_interval`.

    Returns:
        The interval over the queries known in both; its ends are NaN for fewer than two of them.

    >>> difference_interval(torch.tensor([5.0, 9.0]), torch.tensor([4.0, 8.0]))
    Interval(estimate=1.0, low=1.0, high=1.0)

    """
    expect("a", a, (None,))
    expect("b", b, a.shape)
    return mean_interval(a.double() - b.double(), level=level, resamples=resamples, seed=seed, made_by=made_by)


def lds_interval(
    scores: Tensor, masks: Tensor, losses: Tensor, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the linear datamodelling score, mean over queries, and its interval over queries and models.

    Args:
        scores: Influence scores, higher = more influential, ``[Q, N]``.
        masks: Which samples each model was trained on, bool ``[M, N]``.
        losses: Loss of each query under each model, ``[Q, M]``.
        level: The probability that the interval shall cover.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The interval over the queries whose score is known (see ``functional.linear_datamodelling_score``); its ends
        are NaN for fewer than two of them.

    >>> scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    >>> masks = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    >>> lds_interval(scores, masks, torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.6, 0.9]])).estimate
    1.0

    """
    predicted, measured = _predicted_and_measured(scores, masks, losses)
    return interval_over_queries_and_models(
        lambda counts: _resampled_lds(predicted, measured, counts),
        models=masks.shape[0],
        level=level,
        resamples=resamples,
        seed=seed,
        of_mean=lambda mean: mean.clamp(-1, 1),
    )


def lds_difference_interval(
    scores_a: Tensor,
    scores_b: Tensor,
    masks: Tensor,
    losses: Tensor,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return LDS of method a minus that of b, mean over queries, and its interval; a tie if it contains 0.

    Both are resampled to the same queries and models, which takes out what these have in common.

    Args:
        scores_a: Influence scores of method a, ``[Q, N]``.
        scores_b: Those of method b for the same queries and samples, ``[Q, N]``.
        masks: Which samples each model was trained on, bool ``[M, N]``.
        losses: Loss of each query under each model, ``[Q, M]``.
        level: The probability that the interval shall cover.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The interval over the queries known in both; its ends are NaN for fewer than two of them.
    """
    expect("scores_b", scores_b, tuple(scores_a.shape))
    predicted_a, measured = _predicted_and_measured(scores_a, masks, losses)
    predicted_b, _ = _predicted_and_measured(scores_b, masks, losses)
    return interval_over_queries_and_models(
        lambda counts: _resampled_lds(predicted_a, measured, counts) - _resampled_lds(predicted_b, measured, counts),
        models=masks.shape[0],
        level=level,
        resamples=resamples,
        seed=seed,
    )


def _predicted_and_measured(scores: Tensor, masks: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    predicted = subset_sums(scores, masks)
    expect("losses", losses, (scores.shape[0], masks.shape[0]))
    return predicted.cpu(), -losses.double().cpu()


def _resampled_lds(predicted: Tensor, measured: Tensor, counts: Tensor) -> Tensor:
    """Return LDS ``[R, Q]`` from two ``[Q, M]``, query by query: memory is that of some ``[R, M]`` and ``[M, M]``."""
    columns = [
        resampled_correlation(resampled_ranks(sums, counts), resampled_ranks(losses, counts), counts)
        for sums, losses in zip(predicted, measured, strict=True)
    ]
    return torch.stack(columns, dim=1) if columns else counts.new_empty(len(counts), 0)
