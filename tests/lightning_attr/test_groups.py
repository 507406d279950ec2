"""Scores of groups, against sums and random draws made by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from datamodules.grouping import Groups
from lightning_attr import groups as module
from lightning_attr.groups import beyond_chance, group_scores, reduction_of

#: Of six samples; the last is in two groups.
GROUPS = Groups("artist", ("a", "b", "c"), np.array([0, 0, 1, 1, 1, 2]), np.array([0, 5, 1, 2, 5, 3]))


def test_examples_run() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_sums_and_means() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], [1.0, 1.0, 1.0, 1.0, 1.0, torch.nan]])
    assert group_scores(scores[:1], GROUPS).tolist() == [[33, 38, 8]]
    assert group_scores(scores[:1], GROUPS, "mean").tolist() == [[16.5, 38 / 3, 8]]
    assert group_scores(scores[1:], GROUPS).isnan().tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("method", "reduction"),
    [
        ("similarity-latent", "mean"),
        ("tuned-latent", "mean"),
        ("gradient-cosine-per-draw", "mean"),
        ("random", "mean"),
        ("influence-ekfac-per-draw", "sum"),
        ("trak", "sum"),
    ],
)
def test_what_suits_a_method(method: str, reduction: str) -> None:
    assert reduction_of(method) == reduction


def test_beyond_chance_is_what_random_draws_say() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(2, 30)) ** 3
    members = np.array([3, 4, 7, 9, 20])
    groups = Groups("artist", ("a",), np.zeros(5, np.int64), members)
    for row, found in zip(scores, beyond_chance(torch.from_numpy(scores), groups)[:, 0].tolist(), strict=True):
        sums = np.array([generator.choice(row, 5, replace=False).sum() for _ in range(20_000)])
        assert found == pytest.approx((row[members].sum() - sums.mean()) / sums.std(), abs=0.05)


def test_nothing_lies_beyond_chance_where_all_is_alike() -> None:
    everything = Groups("artist", ("a",), np.zeros(3, np.int64), np.arange(3))
    assert beyond_chance(torch.tensor([[1.0, 2.0, 3.0]]), everything).isnan().all()
    assert beyond_chance(torch.ones(1, 6), GROUPS).isnan().all()
