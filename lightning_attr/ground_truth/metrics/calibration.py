"""Are shares what they say? Bins of shares of like size, and how far they are from the truth.

Nearly all samples of a gallery have no share, and none is due to them: counted by samples, any guess would look
calibrated. So bins are of equal mass, and an error counts by the mass that is in the wrong place.

Shape suffixes: P shares of all queries and entries, U units that queries belong to, D bins, R resamples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_attr.ground_truth.metrics.bootstrap import Interval, draw_counts
from lightning_attr.ground_truth.metrics.functional import expect

#: How many bins there are where nothing else is said.
BINS = 5


class Reliability(NamedTuple):
    """Bins of shares, the largest first, float64 [D] each; the last is of what has no share.

    Attributes:
        share: The mean share of an entry of the bin.
        truth: The mean share that is due to it.
        mass: What part of all shares the bin has.
        due: What part of all shares is due to it.
    """

    share: Tensor
    truth: Tensor
    mass: Tensor
    due: Tensor


def adaptive_bins(shares: Tensor, bins: int) -> Tensor:
    """Return the bin of every share, int64 ``[P]``: each of equal mass, from the largest shares to the least.

    Shares of 0 are in a bin of their own, ``bins``; equal shares are in one bin.

    >>> adaptive_bins(torch.tensor([0.1, 0.6, 0.0, 0.3]), bins=2)
    tensor([1, 0, 2, 1])

    """
    expect("shares", shares, (None,))
    order = shares.double().argsort(descending=True, stable=True)
    ordered = shares.double()[order]
    before = ordered.cumsum(0) - ordered
    first = torch.searchsorted(-ordered, -ordered)  # of equal shares, the first decides
    place = (before[first] / ordered.sum() * bins).clamp(0, bins - 1).long()
    place[ordered <= 0] = bins
    return torch.empty_like(place).scatter_(0, order, place)


def reliability_bins(shares: Tensor, truth: Tensor, *, bins: int = BINS) -> Reliability:
    """Return what shares of like size are due in truth: the reliability diagram.

    Args:
        shares: Shares of all queries and entries, ``[P]``.
        truth: What is due to them, ``[P]``; of a query both add up to 1.
        bins: How many bins of equal mass.

    Returns:
        The bins; NaN where a bin has no entry.

    >>> reliability_bins(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), bins=1).truth
    tensor([0.5000,    nan], dtype=torch.float64)

    """
    expect("truth", truth, shares.shape)
    place = adaptive_bins(shares, bins)
    count, mass, due = (_by_bin(values, place, bins) for values in (torch.ones_like(shares), shares, truth))
    return Reliability(mass / count, due / count, mass / mass.sum(), due / mass.sum())


class Calibration(NamedTuple):
    """How far shares are from what is due, as parts of all shares.

    Attributes:
        error: The expected calibration error, in [0, 2], with its interval.
        by_chance: What shares without an error would show on as few units: an absolute value only grows with noise.
    """

    error: Interval
    by_chance: float


def calibration_error(
    shares: Tensor,
    truth: Tensor,
    unit: Tensor,
    *,
    bins: int = BINS,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Calibration:
    """Return the expected calibration error: the sum over bins of ``|mass - due|``, as a part of all shares.

    Args:
        shares: Shares of all queries and entries, ``[P]``.
        truth: What is due to them, ``[P]``.
        unit: What the query of each belongs to, such as its model, int64 ``[P]``, from 0; units are drawn anew.
        bins: How many bins of equal mass, see :func:`adaptive_bins`.
        level: The probability that the interval shall cover.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The error; what is drawn for its interval is NaN for fewer than two units.

    >>> shares, truth = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    >>> calibration_error(shares, truth, torch.tensor([0, 0]), bins=1).error.estimate
    0.0

    """
    expect("truth", truth, shares.shape)
    expect("unit", unit, shares.shape, torch.int64)
    units, place = int(unit.max()) + 1, adaptive_bins(shares, bins)
    cell = unit * (bins + 1) + place
    mass, due = (_by_bin(values, cell, units * (bins + 1) - 1).reshape(units, -1) for values in (shares, truth))
    excess, total = mass - due, mass.sum(1)
    estimate = float(excess.sum(0).abs().sum() / total.sum())
    if units < 2:
        return Calibration(Interval(estimate, math.nan, math.nan), math.nan)
    counts = draw_counts(units, resamples, torch.Generator().manual_seed(seed))
    drawn = (counts @ excess) / (counts @ total)[:, None]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=drawn.dtype)
    interval = Interval(estimate, *drawn.abs().sum(1).quantile(tails).tolist())
    return Calibration(interval, float(math.sqrt(2 / math.pi) * drawn.std(0).sum()))  # the mean of |normal|


def _by_bin(values: Tensor, place: Tensor, last: int) -> Tensor:
    """Return the sums of values by bin, float64 ``[last + 1]``."""
    return torch.zeros(last + 1, dtype=torch.float64).scatter_add_(0, place, values.double())
