"""Recall and average precision of ranks, against all orders of equal scores, plain definitions, and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from lightning_attr.ground_truth.metrics import (
    all_tied,
    exemplar_ranks,
    expected_average_precision,
    expected_recall,
    mean_interval,
)
from lightning_attr.ground_truth.metrics.exemplars import Ranks


def recall_of(order: list[int], exemplars: set[int], k: int) -> float:
    return len(exemplars.intersection(order[:k])) / len(exemplars)


def precision_of(order: list[int], exemplars: set[int]) -> float:
    """Average precision by its definition: the mean over exemplars of the share of exemplars up to each."""
    ranks = sorted(order.index(each) + 1 for each in exemplars)
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(ranks)


def orders(scores: list[float]) -> Iterator[list[int]]:
    """All orders in which no sample stands behind one that scores lower."""
    for order in permutations(range(len(scores))):
        if all(scores[one] >= scores[other] for one, other in pairwise(order)):
            yield list(order)


@pytest.mark.parametrize("seed", range(6))
def test_values_are_means_over_all_orders_of_equal_scores(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 3, 6).astype(float).tolist()
    exemplars = random.choice(6, 1 + seed % 4, replace=False).tolist()
    ranks = exemplar_ranks(torch.tensor([scores]), torch.tensor(exemplars))
    all_orders = list(orders(scores))
    for k in range(1, 8):
        expected = np.mean([recall_of(order, set(exemplars), k) for order in all_orders])
        assert expected_recall(ranks, k).item() == pytest.approx(expected, rel=1e-12)
    expected = np.mean([precision_of(order, set(exemplars)) for order in all_orders])
    assert expected_average_precision(ranks).item() == pytest.approx(expected, rel=1e-12)


def test_without_equal_scores_they_are_scikit_learns() -> None:
    scores, exemplars = torch.rand(5, 400, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 77, 210, 399])
    relevant = torch.zeros(400, dtype=torch.bool).index_fill(0, exemplars, True)
    ranks = exemplar_ranks(scores, exemplars)
    expected = [average_precision_score(relevant.numpy(), row.numpy()) for row in scores]
    np.testing.assert_allclose(expected_average_precision(ranks), expected, rtol=1e-12)
    for k in (5, 100):
        top = scores.topk(k).indices
        np.testing.assert_allclose(expected_recall(ranks, k), relevant[top].sum(1).double() / 4, rtol=1e-12)


def test_queries_may_have_different_numbers_of_exemplars() -> None:
    alone = exemplar_ranks(torch.tensor([[4.0, 3.0, 3.0, 1.0]]), torch.tensor([1]))
    more = exemplar_ranks(torch.tensor([[4.0, 3.0, 3.0, 1.0]]), torch.tensor([0, 3]))
    both = Ranks(
        torch.tensor([[alone.above[0, 0], 0], more.above[0].tolist()]),
        torch.tensor([[alone.equal[0, 0], 0], more.equal[0].tolist()]),
    )
    for measure in (lambda ranks: expected_recall(ranks, 2), expected_average_precision):
        assert torch.equal(measure(both), torch.cat([measure(alone), measure(more)]))


def test_chance_is_what_random_scores_have_on_average() -> None:
    exemplars, gallery, draws = torch.arange(5) * 7, 60, 20_000
    scores = torch.rand(draws, gallery, generator=torch.Generator().manual_seed(0))
    ranks = exemplar_ranks(scores, exemplars)
    chance = all_tied(torch.tensor([5]), torch.tensor([gallery]))
    for k in (5, 10, 100):
        assert expected_recall(chance, k).item() == pytest.approx(min(k, gallery) / gallery, rel=1e-12)
        assert expected_recall(ranks, k).mean().item() == pytest.approx(min(k, gallery) / gallery, rel=0.02)
    harmonic = sum(1 / place for place in range(1, gallery + 1))
    closed = (harmonic + (5 - 1) / (gallery - 1) * (gallery - harmonic)) / gallery
    assert expected_average_precision(chance).item() == pytest.approx(closed, rel=1e-12)
    assert expected_average_precision(ranks).mean().item() == pytest.approx(closed, rel=0.02)


def test_one_cannot_tell_nothing_from_chance() -> None:
    """Wherever the exemplars lie in the store: by their places in it, recall would be 1 or 0."""
    chance = all_tied(torch.tensor([2]), torch.tensor([50]))
    for columns in ([0, 1], [48, 49]):
        ranks = exemplar_ranks(torch.zeros(1, 50), torch.tensor(columns))
        assert torch.equal(expected_average_precision(ranks), expected_average_precision(chance))
        assert torch.equal(expected_recall(ranks, 2), expected_recall(chance, 2))


def test_in_a_gallery_of_a_million_nothing_is_lost() -> None:
    ranks = Ranks(torch.tensor([[0, 999_998]]), torch.tensor([[1, 2]]))
    expected = (1 + (2 / 999_999 + 2 / 1_000_000) / 2) / 2
    assert expected_average_precision(ranks).item() == pytest.approx(expected, rel=1e-12)


def test_queries_without_exemplars_are_unknown() -> None:
    none = Ranks(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    assert math.isnan(expected_recall(none, 5).item())
    assert math.isnan(expected_average_precision(none).item())


def clustered(seed: int, models: int = 30, each: int = 20) -> tuple[Tensor, Tensor]:
    """Values of queries that err with their model: the standard error of the mean is that of the models."""
    generator = torch.Generator().manual_seed(seed)
    of_models = torch.randn(models, 1, generator=generator)
    values = of_models + 0.3 * torch.randn(models, each, generator=generator)
    return values.flatten(), torch.arange(models).repeat_interleave(each)


def test_intervals_that_know_the_models_cover_the_mean() -> None:
    covered = {"queries": 0, "models": 0}
    for seed in range(200):
        values, made_by = clustered(seed)
        for name, of in (("queries", None), ("models", made_by)):
            interval = mean_interval(values, made_by=of, resamples=300)
            covered[name] += interval.low <= 0 <= interval.high
    assert covered["models"] >= 182
    assert covered["queries"] <= 100


def test_the_interval_is_that_of_resampled_models() -> None:
    """By hand: models of unequal numbers of queries, drawn whole, and the mean over the queries drawn."""
    values, made_by = torch.tensor([1.0, 1.0, 1.0, 5.0, 2.0, 9.0, torch.nan]), torch.tensor([7, 7, 7, 4, 4, 2, 2])
    found = mean_interval(values, made_by=made_by, resamples=20_000)
    by_model = {2: [9.0], 4: [5.0, 2.0], 7: [1.0, 1.0, 1.0]}
    random = np.random.default_rng(0)
    means = [
        np.mean([value for model in random.choice([2, 4, 7], 3) for value in by_model[int(model)]])
        for _ in range(20_000)
    ]
    assert found.estimate == pytest.approx(19 / 6)
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]), rtol=0.02)


def test_one_model_has_no_interval() -> None:
    found = mean_interval(torch.tensor([1.0, 2.0]), made_by=torch.tensor([3, 3]))
    assert found.estimate == 1.5
    assert math.isnan(found.low)
