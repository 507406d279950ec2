"""The bootstrap over queries and models: how far a mean over a few of them can be trusted.

A resample is held as counts, how often it has drawn each unit. Every statistic is then a weighted one, which matrix
products give for all resamples at once, and counts of one give the statistic of the data themselves.

Shape suffixes: Q queries, M models, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """An estimate and its bootstrap interval; NaN where unknown."""

    estimate: float
    low: float
    high: float


def draw_counts(units: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Draw resamples of the units with replacement: how often each was drawn, float64 ``[R, units]``."""
    drawn = torch.randint(units, (resamples, units), generator=generator)
    counts = torch.zeros(resamples, units, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def resampled_means(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of each resample, leaving out NaN.

    Args:
        values: One value per unit ``[units]``, or one per resample and unit ``[R, units]``.
        counts: How often each resample drew each unit, ``[R, units]``.

    Returns:
        The means, ``[R]``; NaN where nothing that was drawn is known.

    >>> resampled_means(torch.tensor([1.0, 4.0]), torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    tensor([2.5000, 1.0000])

    """
    weighted = counts * values
    return weighted.nansum(1) / (counts * ~weighted.isnan()).sum(1)


def resampled_ranks(values: Tensor, counts: Tensor) -> Tensor:
    """Return the models' centred average ranks in each resample: half of how many more lie below than above.

    Args:
        values: One value per model, ``[M]``.
        counts: How often each resample drew each model, ``[R, M]``; a model drawn twice ties with itself.

    Returns:
        The ranks minus their mean, ``[R, M]``, exact; NaN if a value is.

    >>> resampled_ranks(torch.tensor([7.0, 5.0, 5.0]).double(), torch.ones(1, 3).double())
    tensor([[ 1.0000, -0.5000, -0.5000]], dtype=torch.float64)

    """
    below = values[:, None] < values
    order = (below.double() - below.T.double()).masked_fill(values.isnan().any(), torch.nan)
    return counts @ order / 2


def resampled_correlation(a: Tensor, b: Tensor, counts: Tensor) -> Tensor:
    """Return Spearman's rank correlation in each resample, ``[R]``, of centred ranks ``[R, M]``; 0 / 0 = NaN."""
    return (counts * a * b).sum(1) / ((counts * a.square()).sum(1) * (counts * b.square()).sum(1)).sqrt()


def interval_over_queries_and_models(
    statistic: Callable[[Tensor], Tensor],
    models: int,
    *,
    level: float,
    resamples: int,
    seed: int,
    of_mean: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Interval:
    """Bootstrap the mean over queries of a statistic over models, both drawn anew in every resample.

    Queries measured on the same models err together: resampling the queries alone would hide that. Resampling both
    counts the variance of their interaction three times instead of once (Owen, "The pigeonhole bootstrap", 2007), so
    that a 95% interval would cover 98% to 100%. How much that is follows from resampling each alone, which counts it
    once: the deviations of the resampled means from the estimate are reduced by what is too much. The interval reaches
    equally far to both sides: two methods that rank all but a few pairs of models alike differ by nothing or to one
    side in every resample, and reduced percentiles would leave out 0. In simulations with 32 models it covers 93% to
    97% for 20 or 40 queries, and 90% to 93% for six.

    Args:
        statistic: Maps counts of the models ``[R, M]`` to one value per resample and query ``[R, Q]``.
        models: M.
        level: The probability that the interval shall cover.
        resamples: R.
        seed: Seed of the resamples.
        of_mean: What is reported, as an increasing function of the mean.

    Returns:
        The interval over the queries whose statistic is known; its ends are NaN for fewer than two of them.
    """
    _expect_settings(level, resamples)
    plain = statistic(torch.ones(1, models, dtype=torch.float64))
    known = ~plain[0].isnan()
    mean = plain[0, known].mean()
    estimate = of_mean(mean).item()
    if known.sum() < 2:
        return Interval(estimate, math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    by_query = statistic(draw_counts(models, resamples, generator))[:, known]
    query_counts = draw_counts(int(known.sum()), resamples, generator)
    of_both = resampled_means(by_query, query_counts)
    of_models, of_queries = by_query.nanmean(1), resampled_means(plain[0, known], query_counts)
    deviations = _spread_factor(of_both, of_models, of_queries) * (of_both - mean).abs()
    reach = deviations.nanquantile(level)
    return Interval(estimate, of_mean(mean - reach).item(), of_mean(mean + reach).item())


def _spread_factor(of_both: Tensor, of_models: Tensor, of_queries: Tensor) -> Tensor:
    """Return by what to multiply the spread of means over queries and models that were both resampled.

    Two factors and their interaction have the variances a + b + 3c when both are resampled, and a + c and b + c when
    one is: a + b + c is wanted, which is never below the two.
    """
    both, models, queries = (_variance(means) for means in (of_both, of_models, of_queries))
    interaction = both - models - queries
    wanted = torch.maximum(models + queries - interaction, torch.maximum(models, queries))
    return (wanted / both).sqrt().nan_to_num(0.0)


def _variance(means: Tensor) -> Tensor:
    return means[~means.isnan()].var(correction=0)


def interval_over_queries(
    values: Tensor, *, level: float, resamples: int, seed: int, made_by: Tensor | None = None
) -> Interval:
    """Bootstrap the mean of one value per query, ``[Q]``, by percentiles; see ``intervals.mean_interval``."""
    _expect_settings(level, resamples)
    known = ~values.isnan().cpu()
    kept = values.cpu()[known].double()
    units = torch.arange(len(kept)) if made_by is None else torch.unique(made_by.cpu()[known], return_inverse=True)[1]
    estimate, count = kept.mean().item(), int(units.max()) + 1 if len(units) else 0
    if count < 2:
        return Interval(estimate, math.nan, math.nan)
    counts = draw_counts(count, resamples, torch.Generator().manual_seed(seed))
    sums = torch.zeros(count, dtype=kept.dtype).index_add(0, units, kept)
    means = resampled_means(sums, counts) / resampled_means(
        torch.bincount(units), counts
    )  # by how many queries each has
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=counts.dtype)
    low, high = means.quantile(tails).tolist()
    return Interval(estimate, low, high)


def _expect_settings(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")
