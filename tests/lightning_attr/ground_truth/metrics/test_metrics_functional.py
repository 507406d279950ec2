import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, spearmanr  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score  # type: ignore[import-untyped]
from torch import Tensor

from lightning_attr.ground_truth.metrics.functional import (
    average_precision,
    feature_similarity,
    generation_deviation,
    linear_datamodelling_score,
    loss_change,
    rank_correlation,
    recall_at_k,
    subset_sums,
)

QUERIES, SAMPLES, MODELS = 6, 40, 12


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def retrieval_case(seed: int, ties: bool) -> tuple[Tensor, Tensor]:
    """Scores and relevant samples, at least one relevant per query."""
    scores = torch.randn(QUERIES, SAMPLES, generator=rng(seed))
    relevant = torch.rand(QUERIES, SAMPLES, generator=rng(seed + 1)) < 0.2
    relevant[:, 3] = True
    return (scores.round() if ties else scores), relevant


def subset_case(seed: int, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, masks and losses of a linear datamodelling score."""
    scores = torch.randn(QUERIES, SAMPLES, generator=rng(seed))
    masks = torch.rand(MODELS, SAMPLES, generator=rng(seed + 1)) < 0.5
    losses = torch.rand(QUERIES, MODELS, generator=rng(seed + 2))
    return (scores.round(), masks, (losses * 4).round()) if ties else (scores, masks, losses)


def scipy_lds(scores: Tensor, masks: Tensor, losses: Tensor) -> NDArray[np.float64]:
    def of_query(row: list[float], query_losses: list[float]) -> float:
        sums = [math.fsum(score for score, inside in zip(row, mask, strict=True) if inside) for mask in masks.tolist()]
        return float(spearmanr(sums, [-loss for loss in query_losses]).statistic)

    return np.array([of_query(*pair) for pair in zip(scores.tolist(), losses.tolist(), strict=True)])


def test_loss_change_is_the_mean_difference_over_draws() -> None:
    original, retrained = torch.rand(2, 3, 5, 7, generator=rng(0))
    found = loss_change(original, retrained)
    assert found.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            differences = [b - a for a, b in zip(original[i, j].tolist(), retrained[i, j].tolist(), strict=True)]
            assert found[i, j].item() == pytest.approx(math.fsum(differences) / 7, rel=1e-12)


def test_loss_change_of_float32_losses_does_not_lose_digits() -> None:
    # One draw in 2**14 differs by one float32 step: a float32 mean of losses near 1 would round that away.
    original = torch.ones(1, 2**14)
    retrained = original.clone()
    retrained[0, 0] += 2**-23
    assert loss_change(original, retrained).item() == 2**-37


def test_loss_change_of_a_diverged_model_is_nan() -> None:
    retrained = torch.tensor([[1.0, torch.nan], [1.0, 3.0]])
    found = loss_change(torch.zeros(2, 2), retrained)
    assert found.isnan().tolist() == [True, False]
    assert found[1] == 2


def test_generation_deviation_is_the_mse_of_each_query() -> None:
    original, regenerated = torch.rand(2, QUERIES, 3, 4, 4, generator=rng(0))
    for found, a, b in zip(generation_deviation(original, regenerated), original, regenerated, strict=True):
        squares = [(x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
        assert found.item() == pytest.approx(math.fsum(squares) / len(squares), rel=1e-12)


def test_generation_deviation_of_bytes_does_not_wrap_around() -> None:
    black, white = torch.zeros(1, 2, dtype=torch.uint8), torch.full((1, 2), 255, dtype=torch.uint8)
    assert generation_deviation(white, black).item() == generation_deviation(black, white).item() == 255**2


def test_generation_deviation_of_a_broken_image_is_unknown() -> None:
    regenerated = torch.ones(2, 3)
    regenerated[0, 1] = torch.nan
    found = generation_deviation(torch.zeros(2, 3), regenerated)
    assert found.isnan().tolist() == [True, False]
    assert found[1] == 1


def test_feature_similarity_is_the_cosine() -> None:
    original, regenerated = torch.randn(2, QUERIES, 4, 5, generator=rng(0))
    for found, a, b in zip(feature_similarity(original, regenerated), original, regenerated, strict=True):
        u, v = a.flatten().tolist(), b.flatten().tolist()
        dot = math.fsum(x * y for x, y in zip(u, v, strict=True))
        assert found.item() == pytest.approx(dot / (math.hypot(*u) * math.hypot(*v)), rel=1e-12)


def test_feature_similarity_to_a_zero_or_broken_vector_is_unknown() -> None:
    found = feature_similarity(torch.ones(3, 2), torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [1.0, 0.0]]))
    assert found.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 5, SAMPLES, 2 * SAMPLES])
def test_recall_matches_a_plain_ranking(k: int, ties: bool) -> None:
    scores, relevant = retrieval_case(seed=k, ties=ties)
    for found, row, exemplars in zip(recall_at_k(scores, relevant, k), scores.tolist(), relevant.tolist(), strict=True):
        ranking = sorted(range(SAMPLES), key=lambda index: (-row[index], index))
        assert found.item() == sum(exemplars[index] for index in ranking[:k]) / sum(exemplars)


def test_recall_divides_by_all_exemplars_even_beyond_k() -> None:
    assert recall_at_k(torch.arange(4.0)[None], torch.ones(1, 4, dtype=torch.bool), k=1).item() == 0.25


def test_recall_breaks_ties_by_the_lower_index() -> None:
    scores = torch.ones(2, 100)
    relevant = torch.zeros(2, 100, dtype=torch.bool)
    relevant[0, 4] = relevant[1, 5] = True
    assert recall_at_k(scores, relevant, k=5).tolist() == [1, 0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_matches_scikit_learn(seed: int, ties: bool) -> None:
    scores, relevant = retrieval_case(seed, ties)
    expected = [average_precision_score(y, s) for y, s in zip(relevant.numpy(), scores.numpy(), strict=True)]
    np.testing.assert_allclose(average_precision(scores, relevant).numpy(), expected, rtol=1e-12)


def test_average_precision_of_equal_scores_is_the_share_of_relevant_samples() -> None:
    relevant = torch.tensor([[True, False, False, False], [False, False, False, True]])
    assert average_precision(torch.zeros(2, 4), relevant).tolist() == [0.25, 0.25]


def test_infinite_scores_rank_first_and_last() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, torch.inf, torch.inf]])
    relevant = torch.tensor([[True, False, True, False]])
    assert average_precision(scores, relevant).item() == (1 / 2 + 2 / 4) / 2
    assert recall_at_k(scores, relevant, k=3).item() == 0.5


def test_retrieval_from_a_single_sample() -> None:
    score, relevant = torch.tensor([[0.5]]), torch.tensor([[True]])
    assert recall_at_k(score, relevant, 1).item() == average_precision(score, relevant).item() == 1
    assert recall_at_k(score, ~relevant, 1).isnan().all()
    assert average_precision(score, ~relevant).isnan().all()


def test_retrieval_is_unknown_without_relevant_samples_or_with_a_nan_score() -> None:
    scores, relevant = retrieval_case(seed=0, ties=False)
    known_recall, known_precision = recall_at_k(scores, relevant, 5), average_precision(scores, relevant)
    relevant[0] = False
    scores[1, 7] = torch.nan
    for found, known in (
        (recall_at_k(scores, relevant, 5), known_recall),
        (average_precision(scores, relevant), known_precision),
    ):
        assert found[:2].isnan().all()
        assert found[2:].equal(known[2:])


def test_a_subset_is_worth_the_sum_of_its_scores() -> None:
    scores, masks, _ = subset_case(seed=0, ties=False)
    for sums, row in zip(subset_sums(scores, masks), scores, strict=True):
        assert sums.tolist() == pytest.approx([math.fsum(row[mask].tolist()) for mask in masks], rel=1e-12)


def test_a_nan_score_makes_all_sums_of_its_query_unknown() -> None:
    scores, masks, _ = subset_case(seed=0, ties=False)
    scores[1, 7] = torch.nan
    assert subset_sums(scores, masks).isnan().any(1).tolist() == [row == 1 for row in range(QUERIES)]
    assert subset_sums(scores, masks)[1].isnan().all()


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_matches_scipy(ties: bool) -> None:
    a, b = torch.randn(2, QUERIES, MODELS, generator=rng(0))
    a, b = (a.round(), b.round()) if ties else (a, b)
    expected = [spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b).numpy(), expected, rtol=1e-12)


def test_rank_correlation_of_constants_nan_or_single_values_is_unknown() -> None:
    a, b = torch.randn(2, 4, 5, generator=rng(0))
    a[0], b[1], b[2, 4] = 0.1, torch.inf, torch.nan
    assert rank_correlation(a, b).isnan().tolist() == [True, True, True, False]
    assert rank_correlation(a[:, :1], b[:, :1]).isnan().all()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_lds_matches_scipy(seed: int, ties: bool) -> None:
    case = subset_case(seed, ties)
    np.testing.assert_allclose(linear_datamodelling_score(*case).numpy(), scipy_lds(*case), rtol=1e-12)


def test_lds_of_a_linear_world_is_one() -> None:
    # The loss falls by each sample's score: the attribution is right, and its negation is wrong.
    scores, masks, _ = subset_case(seed=0, ties=False)
    losses = 5 - scores @ masks.float().T
    assert linear_datamodelling_score(scores, masks, losses).tolist() == [1] * QUERIES
    assert linear_datamodelling_score(-scores, masks, losses).tolist() == [-1] * QUERIES


def test_lds_of_constant_sums_or_losses_is_nan_as_in_scipy() -> None:
    scores, masks, losses = subset_case(seed=0, ties=False)
    scores[0] = 0
    losses[1] = 0.3
    with pytest.warns(ConstantInputWarning):
        expected = scipy_lds(scores, masks, losses)
    assert np.isnan(expected).tolist() == [True, True] + [False] * (QUERIES - 2)
    np.testing.assert_allclose(linear_datamodelling_score(scores, masks, losses).numpy(), expected, rtol=1e-12)


def test_lds_of_equal_scores_and_equally_large_subsets_is_nan() -> None:
    # The sums must tie exactly, in whatever order the samples are added up.
    masks = torch.zeros(MODELS, 10_000, dtype=torch.bool)
    for model in range(MODELS):
        masks[model, torch.randperm(10_000, generator=rng(model))[:5_000]] = True
    scores = torch.full((1, 10_000), 0.1)
    assert linear_datamodelling_score(scores, masks, torch.rand(1, MODELS, generator=rng(99))).isnan().all()


def test_lds_is_unknown_where_a_score_or_a_loss_is_nan() -> None:
    scores, masks, losses = subset_case(seed=0, ties=False)
    known = linear_datamodelling_score(scores, masks, losses)
    losses[0, 3] = torch.nan
    scores[1, 7] = torch.nan
    found = linear_datamodelling_score(scores, masks, losses)
    assert found[:2].isnan().all()
    assert found[2:].equal(known[2:])


@pytest.mark.parametrize("models", [0, 1])
def test_lds_of_fewer_than_two_models_is_nan(models: int) -> None:
    scores, masks, losses = subset_case(seed=0, ties=False)
    assert linear_datamodelling_score(scores, masks[:models], losses[:, :models]).isnan().all()


def test_a_query_alone_scores_as_in_company() -> None:
    a, b = torch.rand(2, QUERIES, 3, 4, generator=rng(0))
    for measure in (loss_change, generation_deviation, feature_similarity):
        assert measure(a[:1], b[:1]).equal(measure(a, b)[:1])
    scores, relevant = retrieval_case(seed=0, ties=True)
    _, masks, losses = subset_case(seed=0, ties=True)
    assert recall_at_k(scores[:1], relevant[:1], 5).equal(recall_at_k(scores, relevant, 5)[:1])
    assert average_precision(scores[:1], relevant[:1]).equal(average_precision(scores, relevant)[:1])
    alone = linear_datamodelling_score(scores[:1], masks, losses[:1])
    assert alone.equal(linear_datamodelling_score(scores, masks, losses)[:1])


def test_everything_stays_on_the_device_of_its_input() -> None:
    # Meta tensors refuse to mix with CPU tensors, as those of a GPU do.
    images = torch.empty(QUERIES, 3, 4, 4, device="meta")
    scores = torch.empty(QUERIES, SAMPLES, device="meta")
    masks = torch.empty(MODELS, SAMPLES, device="meta", dtype=torch.bool)
    losses = torch.empty(QUERIES, MODELS, device="meta")
    results = [
        loss_change(losses, losses),
        generation_deviation(images, images),
        feature_similarity(images, images),
        recall_at_k(scores, scores > 0, 5),
        average_precision(scores, scores > 0),
        linear_datamodelling_score(scores, masks, losses),
        rank_correlation(losses, losses),
    ]
    for result in results:
        assert (result.device.type, result.shape, result.dtype) == ("meta", (QUERIES,), torch.float64)


def test_wrong_inputs_are_named() -> None:
    scores, relevant = retrieval_case(seed=0, ties=False)
    _, masks, losses = subset_case(seed=0, ties=False)
    with pytest.raises(ValueError, match=r"retrained has shape \[2, 1\], expected \[2, 3\]"):
        loss_change(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"regenerated has shape \[1, 3\], expected \[2, 3\]"):
        generation_deviation(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"k is 0, expected at least 1"):
        recall_at_k(scores, relevant, 0)
    with pytest.raises(ValueError, match=r"relevant has dtype torch.int64, expected torch.bool"):
        recall_at_k(scores, relevant.long(), 5)
    with pytest.raises(ValueError, match=r"scores has shape \[40\], expected \[any, any\]"):
        average_precision(scores[0], relevant[0])
    with pytest.raises(ValueError, match=r"masks has shape \[12, 39\], expected \[any, 40\]"):
        linear_datamodelling_score(scores, masks[:, 1:], losses)
    with pytest.raises(ValueError, match=r"losses has shape \[12, 6\], expected \[6, 12\]"):
        linear_datamodelling_score(scores, masks, losses.T)
    with pytest.raises(ValueError, match=r"b has shape \[6, 11\], expected \[6, 12\]"):
        rank_correlation(losses, losses[:, 1:])
    with pytest.raises(ValueError, match=r"masks has dtype torch.float32, expected torch.bool"):
        subset_sums(scores, masks.float())
