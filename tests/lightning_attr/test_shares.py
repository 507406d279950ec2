"""Shares: closed cases by hand, gradients by finite differences, and worlds in which the right shares are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from lightning_attr.artifacts.scores import Scores
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics import Calibration, calibration_error
from lightning_attr.shares import (
    Known,
    Shares,
    SoftAttribution,
    fitted,
    gate,
    masses,
    negative_log_share,
    standardised,
)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_standardised_by_hand() -> None:
    found = standardised(torch.tensor([[1.0, 2.0, 3.0], [-50.0, 0.0, 50.0], [7.0, 7.0, 7.0]]))
    expected = math.sqrt(1.5)
    torch.testing.assert_close(found, torch.tensor([[-expected, 0, expected]] * 2 + [[0.0] * 3]).double())


def test_masses_by_hand() -> None:
    found = masses(torch.tensor([[2.0, 1.5, -8.0]]).double(), *double(2.0, 100.0))
    torch.testing.assert_close(found[0], double(1, math.exp(-1), math.exp(-20)) + 0.1)


def test_shares_by_hand() -> None:
    soft = SoftAttribution(kappa=1.0, b=200.0, slope=2.0, offset=-1.0)
    z = standardised(scores := torch.tensor([[5.0, 4.0, 1.0, 0.0, 0.0]]).double())[0]
    mass = (z - z[0]).exp() + 0.2
    here = 1 / (1 + math.exp(-(2 * float(z[0]) - 1)))
    expected = torch.cat([here * mass / mass.sum(), double(1 - here)])
    torch.testing.assert_close(soft.shares(scores)[0], expected)


def test_shares_add_up_to_one_for_scores_of_any_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 50, generator=generator).double() * torch.tensor([[1e-12], [1.0], [1e9], [0.0]])
    found = SoftAttribution(3.0, 0.5, 1.0, -2.0).shares(scores)
    torch.testing.assert_close(found.sum(1), torch.ones(4).double())
    assert (found >= 0).all()
    torch.testing.assert_close(found[3, :-1], found[3, 0].expand(50))
    torch.testing.assert_close(SoftAttribution(3.0, 0.5, 1.0, -2.0).shares(scores * 7 + 1)[1], found[1])


def test_the_loss_by_hand() -> None:
    exemplar = torch.tensor([True, False, True])
    found = negative_log_share(torch.tensor([[0.5, 0.3, 0.2]]), exemplar)
    assert float(found) == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)


def test_gradients_of_the_loss() -> None:
    """Of kappa and b against finite differences, and of the masses by their closed form."""
    z = standardised(torch.randn(3, 20, generator=torch.Generator().manual_seed(2)))
    exemplar = torch.arange(20) < 3

    def loss(kappa: Tensor, b: Tensor) -> Tensor:
        return negative_log_share(masses(z, kappa, b), exemplar).mean()

    values, step = double(0.8, 30.0), 1e-5
    found = torch.func.grad(loss, argnums=(0, 1))(*values)
    for index, gradient in enumerate(found):
        shift = torch.eye(2, dtype=torch.float64)[index] * step
        expected = (loss(*(values + shift)) - loss(*(values - shift))) / (2 * step)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
    mass = torch.rand(1, 20, generator=torch.Generator().manual_seed(3)).double() + 0.1
    gradient = torch.func.grad(lambda m: negative_log_share(m, exemplar).sum())(mass)
    torch.testing.assert_close(gradient, 1 / mass.sum() - exemplar / (3 * mass))


def test_the_gate_is_plain_logistic_regression() -> None:
    """At its optimum the residuals of Platt's targets are 0 by themselves, and times the number."""
    generator = torch.Generator().manual_seed(0)
    here, gone = torch.randn(50, generator=generator).double() + 4, torch.randn(50, generator=generator).double() + 2.5
    slope, offset = gate(here, gone)
    value = torch.cat([here, gone])
    residual = (slope * value + offset).sigmoid() - torch.cat([torch.full((50,), 51 / 52), torch.full((50,), 1 / 52)])
    assert abs(float(residual.mean())) < 1e-5
    assert abs(float((residual * value).mean())) < 1e-4
    assert slope > 1
    assert all(map(math.isfinite, gate(torch.ones(9).double() * 9, torch.ones(9).double())))
    assert gate(gone, here) == (0.0, 0.0)  # a number that says the opposite of what it is to say says nothing


def world(queries: int, seed: int, samples: int = 60) -> tuple[Known, Tensor]:
    """A gallery whose exemplar is drawn by its share, a softmax of scores; it is put first. And these shares."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(queries, samples, generator=generator).double() * 2.5
    scores = (scores - scores.mean(1, keepdim=True)) * 2.5 / scores.std(1, correction=0, keepdim=True)
    drawn = torch.multinomial(scores.softmax(1), 1, generator=generator)
    first = scores[:, :1].clone()
    scores = scores.scatter(1, drawn, first).index_copy(1, torch.tensor([0]), scores.gather(1, drawn))
    return Known(scores, torch.arange(samples) == 0), scores.softmax(1)


def within(soft: SoftAttribution, known: Known) -> Tensor:
    """The shares among the samples of the gallery."""
    shares = soft.shares(known.scores)[:, :-1]
    return shares / shares.sum(1, keepdim=True)


def error(shares: Tensor) -> Calibration:
    """The calibration error where the first sample is due all."""
    truth = torch.zeros_like(shares)
    truth[:, 0] = 1
    unit = torch.arange(len(shares))[:, None].expand_as(truth)
    return calibration_error(shares.flatten(), truth.flatten(), unit.flatten())


def test_where_the_right_shares_are_known_they_are_found() -> None:
    (known, _), (held_out, right) = world(3000, seed=0), world(3000, seed=1)
    found = within(soft := fitted([known]), held_out)
    assert soft.kappa == pytest.approx(2.5, rel=0.15)
    assert float((found - right).abs().sum(1).mean()) < 0.1
    assert error(found).error.estimate < 0.05
    assert error(found**3 / (found**3).sum(1, keepdim=True)).error.low > 0.15


def far_away(models: int, seed: int) -> list[Known]:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(2, 200, generator=generator).double() for _ in range(models)]
    for each in scores:
        each[:, :2] += 9
    return [Known(each, torch.arange(200) < 2) for each in scores]


def test_exemplars_have_it_all_and_without_them_none_has_any() -> None:
    soft = fitted(far_away(40, seed=0))
    blocks = far_away(10, seed=1)
    here = torch.cat([soft.shares(block.scores) for block in blocks])
    gone = torch.cat([soft.shares(block.without()) for block in blocks])
    assert float(here[:, :2].sum(1).mean()) > 0.9
    assert (here[:, :2] > 10 * here[:, 2:-1].amax(1, keepdim=True)).all()
    assert float(gone[:, -1].mean()) > 0.9


def scores_of(settings: dict[str, object], method: str = "influence") -> Scores:
    return Scores(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0, 1]), method, settings)


SETTINGS: dict[str, Any] = {
    "curvature": "runs/a/curvature.safetensors",
    "damping": {"value": 0.1, "rule": "mean"},
    "parts": [{"method": "x", "features": "some/file"}],
    "samples": {"count": 2},
    "digests": {"curvature": "1", "store": "2", "parts.0.features": "3"},
}


def test_shares_are_of_one_method_with_its_settings(tmp_path: Path) -> None:
    settings = {
        "of_method": scores_of(SETTINGS).of_method,
        "gallery": 10,
        "digests": {"gallery": "9", "encoders": "e"},
        "calibration": {"error": [0.03, 0.02, 0.05]},
    }
    Shares(SoftAttribution(2.0, 10.0, 1.0, -3.0), "influence", settings).save(tmp_path / "shares")
    shares = Shares.load(tmp_path / "shares")
    assert shares.soft == SoftAttribution(2.0, 10.0, 1.0, -3.0)
    assert shares.error == 0.03
    shares.expect_calibrated("x")
    elsewhere = {**SETTINGS, "curvature": "other/place", "samples": {"count": 5}}
    assert shares.unfit(scores_of(elsewhere), "e") is None
    assert shares.unfit(scores_of(SETTINGS, "trak"), "e") == "they are fitted for influence, not for trak"
    other = {**SETTINGS, "damping": {"value": 0.2, "rule": "mean"}}
    assert "they are fitted for damping {'rule': 'mean', 'value': 0.1}, not for" in str(
        shares.unfit(scores_of(other), "e")
    )
    features = {**SETTINGS, "digests": {**SETTINGS["digests"], "parts.0.features": "4"}}
    assert "they are fitted for parts" in str(shares.unfit(scores_of(features), "e"))  # by other tuned features
    assert shares.unfit(scores_of(SETTINGS), "f") == "they are fitted on a gallery of other encoders"


@pytest.mark.parametrize(
    ("calibration", "words"),
    [({}, "no calibration on a test split"), ({"error": [0.06, 0.05, 0.1]}, "an error of 0.060")],
)
def test_what_is_not_calibrated_is_refused(calibration: dict[str, object], words: str) -> None:
    shares = Shares(SoftAttribution(), "influence", {"calibration": calibration})
    with pytest.raises(UserError, match=f"shares.safetensors: found {words}, expected a calibration error of at most"):
        shares.expect_calibrated("shares.safetensors")


@pytest.mark.parametrize("values", [{"kappa": 0.0}, {"b": -1.0}, {"slope": -1.0}, {"offset": math.nan}])
def test_numbers_that_make_no_shares_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match="shares: found SoftAttribution"):
        SoftAttribution(**values)


def as_published(known: Known, kappa: float, b: float, part: Callable[[Tensor], Tensor]) -> Tensor:
    z = standardised(known.scores)
    mass = part((kappa * (z - z.amax(1, keepdim=True))).exp() + b / 1000)
    return mass / mass.sum(1, keepdim=True)


def test_the_published_fit_is_calibrated_less_well() -> None:
    """Kappa and b by its surrogate, on a grid, and the cut that it is for: exemplars of low scores have nothing."""
    (known, _), (held_out, _) = world(3000, seed=0), world(3000, seed=1)
    grid = [(kappa, b) for kappa in np.arange(0.5, 4, 0.25) for b in np.arange(-300.0, 60, 20)]

    def surrogate(pair: tuple[float, float]) -> float:
        return -float(as_published(known, *pair, lambda x: softplus(x, beta=100))[:, 0].log().mean())

    cut = as_published(held_out, *min(grid, key=surrogate), torch.relu)
    assert error(within(fitted([known]), held_out)).error.high < error(cut).error.low
