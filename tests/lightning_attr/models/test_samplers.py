"""Every scheduler of diffusers samples what the pipeline does with it, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import BETAS, diffusers, make_pipeline

from lightning_attr.errors import UserError
from lightning_attr.models import Diffusion, FlowMatching, Model, load

SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {"skip_prk_steps": False}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {}),
    ("DEISMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samplers") / "pipeline"


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return make_pipeline("sd1", folder)


@pytest.fixture(scope="module")
def model(folder: Path, pipeline: Any) -> Model:
    return load(folder)


@pytest.mark.parametrize(("name", "settings"), SCHEDULERS, ids=lambda part: str(part)[:40])
def test_the_latents_are_the_pipelines(pipeline: Any, model: Model, name: str, settings: dict[str, Any]) -> None:
    config = {**BETAS, **settings}
    pipeline.scheduler = getattr(diffusers, name)(**config)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = pipeline(
        ["a cat", "red dog"], height=16, width=16, num_inference_steps=6, guidance_scale=1.0, generator=generators,
        output_type="latent",
    ).images  # fmt: skip
    text, _ = pipeline.encode_prompt(["a cat", "red dog"], "cpu", 1, False)
    asked = replace(model, process=Diffusion({"_class_name": name, **config}))
    found, _ = asked.generate({"text": text}, [3, 4], size=(8, 8), steps=6, guidance=1.0)
    assert torch.equal(found, expected)
    again, _ = asked.generate({"text": text[1:]}, [4], size=(8, 8), steps=6, guidance=1.0)
    torch.testing.assert_close(again[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model]:
    folder = tmp_path_factory.mktemp("flows") / "pipeline"
    return make_pipeline("sd3", folder), load(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": 1.0},
        {"shift": 3.0, "use_karras_sigmas": True},
        {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
    ],
    ids=str,
)
def test_the_latents_of_flows_are_the_pipelines(flow: tuple[Any, Model], settings: dict[str, Any]) -> None:
    pipeline, model = flow
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    expected = pipeline(
        "a cat", height=16, width=16, num_inference_steps=5, guidance_scale=1.0, max_sequence_length=8,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    text, _, pooled, _ = pipeline.encode_prompt("a cat", None, None, "cpu", 1, False, max_sequence_length=8)
    asked = replace(model, process=FlowMatching(settings))
    found, _ = asked.generate({"text": text, "pooled": pooled}, [3], size=(8, 8), steps=5, guidance=1.0)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_training_noises_as_ddpm_does_whatever_samples(name: str, zero_snr: bool) -> None:
    """Samplers keep the last level off zero, by which they divide."""
    config = {**BETAS, "prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    latent, noise, timesteps = torch.randn(1000, 4, 2, 2), torch.randn(1000, 4, 2, 2), torch.arange(1000)
    expected = diffusers.DDPMScheduler(**config)
    noisy, target = Diffusion({"_class_name": name, **config}).noised(latent, noise, timesteps)
    torch.testing.assert_close(noisy, expected.add_noise(latent, noise, timesteps))
    torch.testing.assert_close(target, expected.get_velocity(latent, noise, timesteps))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LCMScheduler", "distilled models"),
        ("TCDScheduler", "distilled models"),
        ("EDMEulerScheduler", "expected one that noises by a schedule of betas"),
        ("CogVideoXDDIMScheduler", "that DDPMScheduler does not have"),
        ("FlowMatchEulerDiscreteScheduler", "expected one that noises by a schedule of betas"),
    ],
)
def test_schedulers_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"model.scheduler: found .*{name}.*{message}"):
        Diffusion({"_class_name": name})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDPMScheduler"}, "found DDPMScheduler, expected FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "FlowMatchLCMScheduler"}, "found FlowMatchLCMScheduler"),
        ({"stochastic_sampling": True}, "stochastic_sampling: found true"),
        ({"invert_sigmas": True}, "invert_sigmas: found true"),
        ({"use_dynamic_shifting": True, "base_shift": None}, "base_shift: found None, expected a number"),
        ({"use_dynamic_shifting": True, "base_image_seq_len": 4096}, "found 4096, expected less than 4096"),
        ({"shift": -3.0}, "shift: found -3.0, expected shares of noise"),
        ({"shift": float("nan")}, "shift: found nan, expected shares of noise"),
    ],
)
def test_flows_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FlowMatching(config)


def test_more_steps_than_timesteps(model: Model) -> None:
    with pytest.raises(UserError, match=r"steps: found 1001, expected .*1000"):
        model.generate({"text": torch.zeros(1, 8, 8)}, [1], size=(8, 8), steps=1001, guidance=1.0)
