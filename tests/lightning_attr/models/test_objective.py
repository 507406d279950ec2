"""What training minimises: how losses count, and how timesteps are drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import DENOISER
from tiny_pipelines import make_pipeline

from lightning_attr.errors import UserError
from lightning_attr.models import Model, Objective, build, load
from lightning_attr.models.spec import write_spec
from lightning_attr.noise import keyed_generator, random_timesteps, training_noise

SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 1,
    "attention_head_dim": 4, "num_attention_heads": 2, "joint_attention_dim": 8, "caption_projection_dim": 8,
    "pooled_projection_dim": 6, "out_channels": 4, "pos_embed_max_size": 8,
}  # fmt: skip


def ratios(model: Model, conditions: dict[str, torch.Tensor], timesteps: torch.Tensor) -> torch.Tensor:
    """How much losses count, against a model of which all count alike."""
    torch.manual_seed(0)
    latent, noise = torch.randn(2, len(timesteps), 4, 8, 8)
    plain = build(**model.configs | {"objective": Objective(weighting="none")})
    plain.network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        inputs = latent, conditions, timesteps, noise
        return model.losses(*inputs) / plain.losses(*inputs)


@pytest.mark.parametrize(
    ("prediction", "divisor"),
    [("epsilon", lambda snr: snr), ("v_prediction", lambda snr: snr + 1), ("sample", lambda snr: 1)],
)
def test_min_snr(prediction: str, divisor: Any) -> None:
    """As the training scripts of diffusers have it: ``min(snr, 5)`` by what the loss is divided by already."""
    model = build(DENOISER, {"prediction_type": prediction}, 0, Objective(weighting="min_snr"))
    timesteps = torch.tensor([0, 100, 300, 600, 999])
    betas = np.linspace(0.0001, 0.02, 1000)
    level = np.cumprod(1 - betas)[timesteps.numpy()]
    snr = level / (1 - level)
    expected = np.minimum(snr, 5) / divisor(snr)
    found = ratios(model, {"text": torch.randn(5, 6, 16)}, timesteps)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)


def test_min_snr_of_noise_alone() -> None:
    """The ratio of signal to noise is zero there, and a loss must not become a number that is none."""
    config = {"prediction_type": "epsilon", "rescale_betas_zero_snr": True}
    model = build(DENOISER, config, 0, Objective(weighting="min_snr"))
    assert ratios(model, {"text": torch.randn(1, 6, 16)}, torch.tensor([999])).tolist() == [1]


def test_flows_count_by_the_share_of_noise() -> None:
    model = build(SD3, {"shift": 3.0})
    timesteps = torch.tensor([0, 100, 500, 999])
    share = np.array([1, 101, 501, 1000]) / 1000
    sigma = 3 * share / (1 + 2 * share)
    found = ratios(model, {"text": torch.randn(4, 5, 8), "pooled": torch.randn(4, 6)}, timesteps)
    np.testing.assert_allclose(found.numpy(), sigma**2, rtol=1e-4)
    np.testing.assert_allclose(model.process.times(timesteps).numpy(), 1000 * sigma, rtol=1e-5)


@pytest.mark.parametrize(("denoiser", "weighting"), [(DENOISER, "sigma_squared"), (SD3, "min_snr")])
def test_a_weighting_of_another_process(denoiser: dict[str, Any], weighting: Any) -> None:
    with pytest.raises(UserError, match=f"objective.weighting: found '{weighting}', expected none or"):
        build(denoiser, {}, 0, Objective(weighting=weighting))


def test_what_is_usual_and_what_is_given() -> None:
    usual, given = build(SD3, {}), build(SD3, {}, 0, Objective("none", "uniform"))
    assert (usual.weighting, usual.sampling, usual.configs.keys()) == (
        "sigma_squared", "logit_normal", {"denoiser", "scheduler"},
    )  # fmt: skip
    assert (given.weighting, given.sampling) == ("none", "uniform")
    assert given.configs["objective"] == {"weighting": "none", "timesteps": "uniform"}
    with pytest.raises(UserError, match=r"objective\.guidance: found -1"):
        Objective(guidance=-1)


def test_timesteps_are_the_sigmoid_of_normal_numbers() -> None:
    drawn = random_timesteps(keyed_generator("a"), 1000, "logit_normal", 20_000)
    assert drawn.dtype == np.int64
    assert (drawn.min() >= 0, drawn.max() <= 999) == (True, True)
    logits = np.log((drawn + 0.5) / (999.5 - drawn))
    assert abs(logits.mean()) < 0.03
    assert abs(logits.std() - 1) < 0.03
    within = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    share = ((drawn < 1000 * within[0]) & (drawn >= 1000 * within[1])).mean()
    assert abs(share - 0.6827) < 0.01  # of normal numbers within one deviation


def test_noise_does_not_depend_on_how_timesteps_are_drawn() -> None:
    uniform, logit = (training_noise(0, 1, [3, 4], (2, 2), 1000, sampling) for sampling in ("uniform", "logit_normal"))
    assert torch.equal(uniform[0], logit[0])
    assert not torch.equal(uniform[1], logit[1])


def test_a_checkpoint_keeps_its_objective(tmp_path: Path) -> None:
    model = build(SD3, {}, 0, Objective("none", "uniform"))
    weights = {f"denoiser.{name}": value for name, value in model.network.state_dict().items()}

    def saved(**objective: Any) -> Path:
        record = {**model.configs, "objective": objective}
        torch.save({"state_dict": weights, "trained_model": record}, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    assert load(saved(**model.configs["objective"])).objective == model.objective
    for objective, message in (
        ({"weighting": "loud"}, "trained_model.objective.weighting: found 'loud', expected one of"),
        ({"weighting": ["none"]}, "trained_model.objective.weighting: found"),
        ({"timesteps": 3}, "trained_model.objective.timesteps: found 3"),
        ({"guidance": "much"}, "trained_model.objective.guidance: found 'much', expected one of numbers"),
        ({"colour": 1}, "trained_model.objective.colour: found 1"),
        ({"weighting": "min_snr"}, "objective.weighting: found 'min_snr', expected none or sigma_squared"),
    ):
        with pytest.raises(UserError, match=message):
            load(saved(**objective))


def test_a_spec_says_how_a_model_was_trained(tmp_path: Path) -> None:
    make_pipeline("flux", tmp_path / "flux")
    write_spec(tmp_path / "usual.yaml", tmp_path / "flux")
    write_spec(tmp_path / "given.yaml", tmp_path / "flux", objective=Objective(timesteps="logit_normal", guidance=1.0))
    usual, given = load(tmp_path / "usual.yaml"), load(tmp_path / "given.yaml")
    assert (usual.sampling, given.sampling, usual.digest != given.digest) == ("uniform", "logit_normal", True)
    latent, noise = torch.randn(2, 2, 4, 8, 8)
    conditions = {"text": torch.randn(2, 5, 12), "pooled": torch.randn(2, 8)}
    timesteps = torch.tensor([100, 700])
    told = {**conditions, "guidance": torch.ones(2)}
    with torch.no_grad():
        expected = usual.losses(latent, told, timesteps, noise)
        assert torch.equal(given.losses(latent, conditions, timesteps, noise), expected)
        assert not torch.allclose(usual.losses(latent, conditions, timesteps, noise), expected)
    path = tmp_path / "given.yaml"
    path.write_text(path.read_text().replace("guidance: 1.0", "guidance: high"))
    with pytest.raises(UserError, match=r"given\.yaml: objective\.guidance: found 'high', expected one of numbers"):
        load(path)
