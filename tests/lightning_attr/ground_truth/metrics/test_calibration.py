"""Calibration of shares against loops, and against what is known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_attr.ground_truth.metrics import calibration_error, reliability_bins
from lightning_attr.ground_truth.metrics.calibration import adaptive_bins


def made(queries: int, seed: int, power: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shares by which the one right entry of each query is drawn, raised to a power afterwards."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(12, 0.3), size=queries)
    truth = np.stack([rng.multinomial(1, row) for row in shares]).astype(float)
    said = shares**power / (shares**power).sum(1, keepdims=True)
    unit = torch.arange(queries)[:, None].expand(-1, 12)
    return torch.from_numpy(said).flatten(), torch.from_numpy(truth).flatten(), unit.flatten()


def test_bins_are_of_equal_mass() -> None:
    shares, _, _ = made(300, 0)
    place = adaptive_bins(shares, 6)
    mass = torch.stack([shares[place == index].sum() for index in range(6)]) / 300
    torch.testing.assert_close(mass, torch.full((6,), 1 / 6).double(), atol=0.01, rtol=0)
    for index in range(5):
        assert shares[place == index].min() >= shares[place == index + 1].max()
    assert adaptive_bins(torch.tensor([0.0, 1.0, 0.0]), 4).tolist() == [4, 0, 4]


def test_against_loops() -> None:
    shares, truth, unit = made(80, 1)
    place = adaptive_bins(shares, 5)
    error = sum(abs(float((shares - truth)[place == index].sum())) for index in range(6)) / 80
    assert calibration_error(shares, truth, unit).error.estimate == pytest.approx(error)
    bins = reliability_bins(shares, truth)
    for index in range(5):
        inside = place == index
        assert float(bins.share[index]) == pytest.approx(float(shares[inside].mean()))
        assert float(bins.truth[index]) == pytest.approx(float(truth[inside].mean()))
    assert float(bins.mass.sum()) == pytest.approx(1)
    assert float(bins.due.sum()) == pytest.approx(1)


def test_right_shares_show_what_chance_shows() -> None:
    errors, promised = [], []
    for seed in range(40):
        found = calibration_error(*made(150, seed), resamples=200)
        errors.append(found.error.estimate)
        promised.append(found.by_chance)
    assert np.mean(promised) == pytest.approx(np.mean(errors), rel=0.15)


def test_wrong_shares_show_it() -> None:
    right, sharp = (calibration_error(*made(2000, 0, power)) for power in (1.0, 2.0))
    assert right.error.estimate < 0.05 + right.by_chance
    assert sharp.error.low > 0.2
    assert sharp.error.low < sharp.error.estimate < sharp.error.high


def test_what_is_due_to_entries_without_a_share_counts() -> None:
    found = calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0, 0]))
    assert found.error.estimate == 2
    assert math.isnan(found.error.low)
