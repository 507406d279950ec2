from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, spearmanr  # type: ignore[import-untyped]
from torch import Tensor

from lightning_attr.ground_truth.metrics import (
    Interval,
    attributability,
    difference_interval,
    lds_ceiling,
    lds_difference_interval,
    lds_interval,
    mean_interval,
    variance_components,
)
from lightning_attr.ground_truth.metrics.bootstrap import draw_counts, resampled_correlation, resampled_ranks
from lightning_attr.ground_truth.metrics.functional import linear_datamodelling_score, rank_correlation

QUERIES, SAMPLES, MODELS, SEEDS = 20, 60, 40, 3


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def subset_case(seed: int, noise: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, masks, and losses that fall by the sum of the scores but for noise."""
    scores = normal(QUERIES, SAMPLES, seed=seed)
    masks = torch.rand(MODELS, SAMPLES, generator=rng(seed + 1)) < 0.5
    losses = noise * normal(QUERIES, MODELS, seed=seed + 2) - scores @ masks.double().T
    return scores, masks, losses


def seeded_losses(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Expected losses [Q, M], and losses measured under several training seeds [S, Q, M]."""
    expected = normal(QUERIES, MODELS, seed=seed)
    return expected, expected + noise * normal(SEEDS, QUERIES, MODELS, seed=seed + 1)


def assert_ends_unknown(interval: Interval) -> None:
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


SCORES, MASKS, LOSSES = subset_case(seed=0)
OTHERS = normal(QUERIES, SAMPLES, seed=9)
A, B = normal(2, QUERIES, seed=0)
INTERVALS: dict[str, Callable[..., Interval]] = {
    "mean": partial(mean_interval, A),
    "difference": partial(difference_interval, A, B),
    "lds": partial(lds_interval, SCORES, MASKS, LOSSES),
    "lds_difference": partial(lds_difference_interval, SCORES, OTHERS, MASKS, LOSSES),
    "ceiling": partial(lds_ceiling, seeded_losses(seed=0, noise=1)[1]),
}


@pytest.fixture(params=INTERVALS)
def interval(request: pytest.FixtureRequest) -> Callable[..., Interval]:
    return INTERVALS[request.param]


def test_equal_inputs_give_equal_intervals_and_leave_the_global_generator_alone(
    interval: Callable[..., Interval],
) -> None:
    before = torch.get_rng_state()
    assert interval() == interval()
    assert torch.get_rng_state().equal(before)
    assert interval(seed=1) != interval()
    assert interval(seed=1).estimate == interval().estimate


def test_an_interval_holds_its_estimate_and_grows_with_its_level(interval: Callable[..., Interval]) -> None:
    narrow, wide = interval(level=0.5), interval(level=0.95)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_wrong_settings_are_named(interval: Callable[..., Interval]) -> None:
    with pytest.raises(ValueError, match="level is 95, expected a number between 0 and 1"):
        interval(level=95)
    with pytest.raises(ValueError, match="resamples is 0, expected at least 1"):
        interval(resamples=0)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = normal(QUERIES, seed=3).exp()  # skewed, so that the two ends differ
    expected = bootstrap((values.numpy(),), np.mean, method="percentile", n_resamples=50_000, rng=0)
    found = mean_interval(values, resamples=50_000)
    assert found.estimate == pytest.approx(values.mean().item(), rel=1e-12)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.05 * expected.standard_error)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.05 * expected.standard_error)


def test_nan_is_left_out_of_a_mean() -> None:
    known = torch.tensor([1.0, 2.0, 4.0])
    assert mean_interval(torch.tensor([1.0, math.nan, 2.0, 4.0])) == mean_interval(known)
    a, b = torch.tensor([1.0, math.nan, 2.0, 4.0]), torch.tensor([0.0, 1.0, math.nan, 3.0])
    assert difference_interval(a, b) == (1, 1, 1)


@pytest.mark.parametrize(("values", "estimate"), [([], math.nan), ([math.nan], math.nan), ([math.nan, 2.0], 2.0)])
def test_fewer_than_two_known_queries_have_no_interval(values: list[float], estimate: float) -> None:
    for found in (
        mean_interval(torch.tensor(values)),
        difference_interval(torch.tensor(values), torch.zeros(len(values))),
    ):
        assert found.estimate == pytest.approx(estimate, nan_ok=True)
        assert_ends_unknown(found)


def test_pairs_tell_methods_apart_whose_own_intervals_overlap() -> None:
    a = 10 * normal(QUERIES, seed=1)
    b = a - 0.5 + 0.1 * normal(QUERIES, seed=2)
    assert mean_interval(a).low < mean_interval(b).high
    assert difference_interval(a, b).low > 0
    tie = difference_interval(a, a + 0.1 * (normal(QUERIES, seed=3) - normal(QUERIES, seed=3).mean()))
    assert tie.low <= 0 <= tie.high


@pytest.mark.parametrize("ties", [False, True])
def test_a_resampled_correlation_is_that_of_the_drawn_models(ties: bool) -> None:
    a, b = normal(2, MODELS, seed=4)
    a, b = (a.round(), b.round()) if ties else (a, b)
    counts = draw_counts(MODELS, 20, rng(0))
    found = resampled_correlation(resampled_ranks(a, counts), resampled_ranks(b, counts), counts)
    for correlation, count in zip(found, counts.long(), strict=True):
        drawn = torch.arange(MODELS).repeat_interleave(count)
        assert len(drawn) == MODELS
        assert correlation.item() == pytest.approx(spearmanr(a[drawn], b[drawn]).statistic, rel=1e-12)


def test_infinite_losses_have_ranks_and_nan_has_none() -> None:
    counts = torch.ones(1, 3, dtype=torch.float64)
    assert resampled_ranks(torch.tensor([torch.inf, 0.0, torch.inf]), counts).tolist() == [[0.5, -1, 0.5]]
    assert resampled_ranks(torch.tensor([torch.nan, 0.0, 1.0]), counts).isnan().all()


def plain_lds_means(resamples: int, of_queries: bool, of_models: bool) -> Tensor:
    """Resample queries, models or both one resample at a time, by numpy's generator."""
    generator = np.random.default_rng(0)

    def drawn(units: int, anew: bool) -> Tensor:
        return torch.from_numpy(generator.integers(units, size=units)) if anew else torch.arange(units)

    means = []
    for _ in range(resamples):
        queries, models = drawn(len(SCORES), of_queries), drawn(len(MASKS), of_models)
        means.append(linear_datamodelling_score(SCORES[queries], MASKS[models], LOSSES[queries][:, models]).mean())
    return torch.stack(means)


@pytest.mark.slow
def test_the_interval_of_lds_counts_what_queries_and_models_do_together_once() -> None:
    found = lds_interval(SCORES, MASKS, LOSSES, resamples=20_000, level=0.8)
    estimate = linear_datamodelling_score(SCORES, MASKS, LOSSES).mean().item()
    assert found.estimate == pytest.approx(estimate, rel=1e-12)
    both, queries, models = (plain_lds_means(2_000, *which) for which in ((True, True), (True, False), (False, True)))
    once = 2 * (queries.var() + models.var()) - both.var()  # (a + c) + (b + c) - c of a + b + 3 c
    reach = (both - estimate).abs().quantile(0.8).item()
    factor = (once / both.var()).sqrt().item()
    assert 0.5 < factor < 0.9
    tolerance = 0.1 * reach  # about three standard errors of the plain one's
    assert found.low == pytest.approx(estimate - factor * reach, abs=tolerance)
    assert found.high == pytest.approx(estimate + factor * reach, abs=tolerance)


def test_models_that_all_queries_share_widen_the_interval() -> None:
    # All queries are copies: a bootstrap over queries alone would be certain.
    scores, losses = SCORES[:1].expand(QUERIES, -1), LOSSES[:1].expand(QUERIES, -1)
    found = lds_interval(scores, MASKS, losses)
    assert found.high - found.low > 0.2


def test_the_difference_of_lds_is_paired() -> None:
    near = SCORES + 0.3 * normal(QUERIES, SAMPLES, seed=5)
    found = lds_difference_interval(SCORES, near, MASKS, LOSSES)
    a, b = (linear_datamodelling_score(scores, MASKS, LOSSES).mean().item() for scores in (SCORES, near))
    alone = lds_interval(SCORES, MASKS, LOSSES)
    assert found.estimate == pytest.approx(a - b, rel=1e-9)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)
    assert lds_difference_interval(SCORES, SCORES, MASKS, LOSSES) == (0, 0, 0)
    assert lds_difference_interval(SCORES, OTHERS, MASKS, LOSSES).low > 0


def test_scores_that_swap_a_few_models_tie() -> None:
    # Whatever a resample draws of the swaps, the difference is nothing or to one side.
    near = [SCORES[:6] + 1e-3 * normal(6, SAMPLES, seed=seed) for seed in range(20)]
    found = [lds_difference_interval(SCORES[:6], each, MASKS, LOSSES[:6], resamples=500) for each in near]
    assert sum(0 < abs(each.estimate) < 1e-2 for each in found) >= 10
    assert all(each.low <= 0 <= each.high for each in found)


def test_unknown_queries_are_left_out_of_the_lds() -> None:
    scores, losses = SCORES.clone(), LOSSES.clone()
    losses[0, 3] = math.nan  # not measured under one model
    scores[1] = 0  # all sums are equal
    losses[2] = 0.5  # all losses are equal
    known = lds_interval(SCORES[3:], MASKS, LOSSES[3:])
    assert lds_interval(scores, MASKS, losses) == pytest.approx(known, rel=1e-12)
    others = OTHERS.clone()
    others[3, 0] = math.nan
    difference = lds_difference_interval(SCORES[4:], OTHERS[4:], MASKS, LOSSES[4:])
    assert lds_difference_interval(scores, others, MASKS, losses) == pytest.approx(difference, rel=1e-9)


def test_lds_of_one_query_or_none_has_no_interval() -> None:
    one = lds_interval(SCORES[:1], MASKS, LOSSES[:1])
    assert one.estimate == pytest.approx(linear_datamodelling_score(SCORES[:1], MASKS, LOSSES[:1]).item(), rel=1e-12)
    assert_ends_unknown(one)
    for unknown in (
        lds_interval(SCORES[:0], MASKS, LOSSES[:0]),
        lds_interval(SCORES, MASKS, torch.full_like(LOSSES, math.nan)),
        lds_interval(SCORES, MASKS[:1], LOSSES[:, :1]),
        lds_interval(SCORES, MASKS[:0], LOSSES[:, :0]),
        lds_ceiling(torch.full((2, QUERIES, MODELS), math.nan)),
        lds_ceiling(torch.zeros(2, 0, MODELS)),
        lds_ceiling(torch.zeros(2, QUERIES, 1)),
    ):
        assert math.isnan(unknown.estimate)
        assert_ends_unknown(unknown)


def test_a_few_models_leave_out_the_resamples_that_say_nothing() -> None:
    # Of two models every second resample holds one of them twice.
    found = lds_interval(SCORES, MASKS[:2], LOSSES[:, :2])
    assert -1 <= found.low <= found.estimate <= found.high <= 1


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_the_ceiling_is_what_the_expected_losses_score(noise: float) -> None:
    ceilings, reached = [], []
    for seed in range(0, 60, 2):
        expected, losses = seeded_losses(seed, noise)
        ceilings.append(lds_ceiling(losses, resamples=1).estimate)
        reached.append(rank_correlation(expected, losses.mean(0)).mean().item())
    pearson = 1 / math.sqrt(1 + noise**2 / SEEDS)  # a signal of variance 1, a noise of noise**2 / S
    spearman = 6 / math.pi * math.asin(pearson / 2)  # of normal variables
    assert np.mean(reached) == pytest.approx(spearman, abs=0.02)
    assert np.mean(ceilings) == pytest.approx(spearman, abs=0.03)


def test_the_interval_of_the_ceiling_covers_what_the_expected_losses_score() -> None:
    covered = 0
    for seed in range(0, 60, 2):
        expected, losses = seeded_losses(seed, noise=2)
        found = lds_ceiling(losses, resamples=300)
        covered += found.low <= rank_correlation(expected, losses.mean(0)).mean().item() <= found.high
    assert covered >= 27


def test_the_ceiling_of_pure_noise_is_near_zero_and_that_of_exact_losses_is_one() -> None:
    noise = lds_ceiling(normal(SEEDS, QUERIES, MODELS, seed=1))
    assert noise.low == 0
    assert noise.estimate < 0.3
    assert lds_ceiling(LOSSES.expand(2, -1, -1)) == pytest.approx((1, 1, 1))


def test_opposite_seeds_do_not_pass_for_a_signal() -> None:
    # Spearman-Brown of a correlation near -1 would blow up.
    assert lds_ceiling(torch.stack([LOSSES, -LOSSES])) == (0, 0, 0)


def test_the_ceiling_needs_two_seeds() -> None:
    with pytest.raises(ValueError, match="losses has 1 training seeds, expected at least 2"):
        lds_ceiling(torch.zeros(1, QUERIES, MODELS))


def test_queries_unknown_under_one_seed_are_left_out_of_ground_truth() -> None:
    losses = seeded_losses(seed=0, noise=1)[1]
    broken = losses.clone()
    broken[1, 0, 5] = math.nan
    assert lds_ceiling(broken) == pytest.approx(lds_ceiling(losses[:, 1:]), rel=1e-12)
    assert variance_components(broken) == pytest.approx(variance_components(losses[:, 1:]), rel=1e-12)


def test_variances_are_those_of_the_simulation() -> None:
    data, seed, rest = 4.0, 1.0, 0.25
    losses = (
        math.sqrt(data) * normal(1, 200, 50, seed=0)
        + math.sqrt(seed) * normal(40, 200, 1, seed=1)
        + math.sqrt(rest) * normal(40, 200, 50, seed=2)
    )
    assert variance_components(losses) == pytest.approx((data, seed, rest), rel=0.05)


def test_variances_do_not_fall_below_zero() -> None:
    # The two seeds are opposite: subsets differ less than their residuals suggest.
    losses = normal(1, 5, 6, seed=0)
    found = variance_components(torch.cat([losses, -losses]))
    assert found.data == 0
    assert found.rest > 0


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 1), (3, 0, 5)])
def test_variances_need_seeds_subsets_and_queries(shape: tuple[int, int, int]) -> None:
    for seed in range(50):  # what is divided by zero may be rounding instead of zero
        found = variance_components(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))
        assert math.isnan(found.data)
        assert math.isnan(found.rest)


def test_attributability_is_the_first_k_beyond_the_floor() -> None:
    changes = torch.tensor(
        [
            [0.3, 0.0, 0.3],  # the first counts, even where a later one falls back
            [0.1, 0.2, 0.3],  # equal to the floor is not beyond it
            [0.0, 0.0, 0.1],
            [math.nan, math.nan, 0.2],  # not measured at the first two
            [math.nan, math.nan, math.nan],
            [0.3, 0.3, 0.3],  # the floor is not known
        ]
    )
    floor = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, math.nan])
    assert attributability([16, 64, 256], changes, floor) == [16, 64, None, 256, None, None]
    assert attributability([], changes[:, :0], floor) == [None] * 6
    by_k = torch.tensor([0.3, 0.1, math.nan]).expand(6, 3)
    assert attributability([16, 64, 256], changes, by_k) == [None, 64, None, None, None, 64]


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"ks is \[64, 16\], expected ascending numbers"):
        attributability([64, 16], torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"loss_changes has shape \[1, 3\], expected \[any, 2\]"):
        attributability([16, 64], torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(ValueError, match=r"floor has shape \[2\], expected \[1\]"):
        attributability([16], torch.zeros(1, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"floor has shape \[1, 2\], expected \[1, 1\]"):
        attributability([16], torch.zeros(1, 1), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"values has shape \[1, 3\], expected \[any\]"):
        mean_interval(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"b has shape \[2\], expected \[3\]"):
        difference_interval(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"losses has shape \[40, 20\], expected \[20, 40\]"):
        lds_interval(SCORES, MASKS, LOSSES.T)
    with pytest.raises(ValueError, match=r"scores_b has shape \[19, 60\], expected \[20, 60\]"):
        lds_difference_interval(SCORES, OTHERS[1:], MASKS, LOSSES)
    with pytest.raises(ValueError, match=r"losses has shape \[20, 40\], expected \[any, any, any\]"):
        lds_ceiling(LOSSES)


def coverage(draw: Callable[[int], Interval], truth: float, repeats: int) -> float:
    intervals = [draw(seed) for seed in range(repeats)]
    return sum(found.low <= truth <= found.high for found in intervals) / repeats


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    found = coverage(lambda seed: mean_interval(normal(QUERIES, seed=seed) + 7, resamples=500), truth=7, repeats=1000)
    assert 0.90 <= found <= 0.96  # 0.93 expected of twenty queries


@pytest.mark.slow
def test_the_intervals_of_lds_cover_the_lds_of_all_queries_and_models() -> None:
    def draw(seed: int, queries: int = QUERIES, models: int = MODELS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = rng(seed)
        scores = torch.randn(queries, SAMPLES, generator=generator)
        others = scores + torch.randn(queries, SAMPLES, generator=generator)
        masks = torch.rand(models, SAMPLES, generator=generator) < 0.5
        deviation = 4 * (0.5 * torch.randn(queries, 1, generator=generator)).exp()  # queries differ in their noise
        noise = deviation * torch.randn(queries, models, generator=generator)
        common = 2 * torch.randn(1, models, generator=generator)  # good and bad models
        return scores, others, masks, noise + common - scores @ masks.float().T

    scores, others, masks, losses = draw(10**6, queries=500, models=3000)
    of_scores, of_others = (linear_datamodelling_score(each, masks, losses).mean().item() for each in (scores, others))

    def alone(seed: int) -> Interval:
        scores, _, masks, losses = draw(seed)
        return lds_interval(scores, masks, losses, resamples=300)

    def difference(seed: int) -> Interval:
        return lds_difference_interval(*draw(seed), resamples=300)

    assert 0.91 <= coverage(alone, of_scores, repeats=300) <= 0.985
    assert 0.91 <= coverage(difference, of_scores - of_others, repeats=300) <= 0.985
