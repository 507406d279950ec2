"""What every family must do, on tiny random pipelines saved as diffusers saves its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import FAMILIES, diffusers, make_pipeline
from torch import Tensor, nn
from torch.nn.functional import normalize

from lightning_attr.encoders import PipelineText
from lightning_attr.gradients import Output, per_sample_gradients, sample_gradients
from lightning_attr.models import Inputs, Model, load
from lightning_attr.noise import Draws

PROMPTS = ["a cat on the mat", "red dog", "the blue house", "a dog on the red mat"]
TOKENS = 8
SIZE = (8, 8)
GUIDANCE = 3.0


@dataclass
class Case:
    """A family's pipeline, as diffusers has it and as we load it."""

    family: str
    folder: Path
    pipeline: Any

    @cached_property
    def text(self) -> PipelineText:
        return PipelineText(str(self.folder), None if self.family in ("sd1", "sd2", "sdxl") else TOKENS)

    @cached_property
    def model(self) -> Model:
        """The model; its null conditions are of as many tokens as those of the prompts here."""
        model = load(self.folder)
        model.null = model.denoiser.null(self.text)
        return model

    def conditions(self, prompts: list[str]) -> dict[str, Tensor]:
        sizes = self.model.denoiser.of_size(16, 16)
        own = {name: value.expand(len(prompts), *value.shape) for name, value in sizes.items()}
        return {**self.text.encode(prompts), **own}

    def sample(self, prompts: list[str], seeds: list[int], steps: int, guidance: float) -> Tensor:
        """Return the latents that the pipeline makes."""
        arguments: dict[str, Any] = {"max_sequence_length": TOKENS} if self.text.tokens else {}
        if self.family == "pixart":
            arguments |= {"use_resolution_binning": False, "clean_caption": False}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents: Tensor = self.pipeline(
            prompts, height=16, width=16, num_inference_steps=steps, guidance_scale=guidance, generator=generators,
            output_type="latent", **arguments,
        ).images  # fmt: skip
        if self.family != "flux":
            return latents
        return self.pipeline._unpack_latents(latents, 16, 16, 2)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param) / "pipeline"
    return Case(request.param, folder, make_pipeline(request.param, folder))


def inputs(case: Case, count: int = 3) -> Inputs:
    """Random latents, conditions of prompts, timesteps over the whole schedule, noise."""
    torch.manual_seed(0)
    latent, noise = torch.randn(2, count, case.model.latent_shape[0], *SIZE)
    return Inputs(latent, case.conditions(PROMPTS[:count]), torch.tensor([10, 500, 950])[:count], noise)


def network_call(case: Case, noisy: Tensor, times: Tensor, guidance: float) -> Tensor:
    """Call the pipeline's network as the pipeline's code does, with what its own ``encode_prompt`` returns."""
    pipeline, prompts = case.pipeline, PROMPTS[: len(noisy)]
    plain = {"device": "cpu", "num_images_per_prompt": 1}
    unguided = {**plain, "do_classifier_free_guidance": False}
    if case.family in ("sd1", "sd2"):
        text, _ = pipeline.encode_prompt(prompts, **unguided)
        return pipeline.unet(noisy, times, encoder_hidden_states=text).sample  # type: ignore[no-any-return]
    if case.family == "sdxl":
        text, _, pooled, _ = pipeline.encode_prompt(prompts, **unguided)
        sizes = pipeline._get_add_time_ids((16, 16), (0, 0), (16, 16), text.dtype, pooled.shape[-1])
        added = {"text_embeds": pooled, "time_ids": sizes.repeat(len(noisy), 1)}
        return pipeline.unet(noisy, times, encoder_hidden_states=text, added_cond_kwargs=added).sample  # type: ignore[no-any-return]
    if case.family == "sd3":
        text, _, pooled, _ = pipeline.encode_prompt(
            prompts, prompt_2=None, prompt_3=None, max_sequence_length=TOKENS, **unguided
        )
        return pipeline.transformer(noisy, text, pooled, times).sample  # type: ignore[no-any-return]
    if case.family == "flux":
        text, pooled, ids = pipeline.encode_prompt(prompts, max_sequence_length=TOKENS, **plain)
        _, channels, height, width = noisy.shape
        tokens = pipeline._pack_latents(noisy, len(noisy), channels, height, width)
        places = pipeline._prepare_latent_image_ids(len(noisy), height // 2, width // 2, "cpu", torch.float32)
        found = pipeline.transformer(
            tokens, timestep=times / 1000, guidance=torch.full([len(noisy)], guidance), pooled_projections=pooled,
            encoder_hidden_states=text, txt_ids=ids, img_ids=places,
        ).sample  # fmt: skip
        return pipeline._unpack_latents(found, 16, 16, 2)  # type: ignore[no-any-return]
    text, mask, _, _ = pipeline.encode_prompt(prompts, max_sequence_length=TOKENS, **unguided)
    found = pipeline.transformer(
        noisy, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=times,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample  # fmt: skip
    return found.chunk(2, dim=1)[0]  # type: ignore[no-any-return]


@torch.no_grad()
def test_the_prediction_is_the_networks_own(case: Case) -> None:
    noisy, conditions, timesteps, _ = inputs(case)
    times = case.model.process.times(timesteps)
    found = case.model.predict(noisy, times, conditions)
    assert torch.equal(found, network_call(case, noisy, times, 3.5))


@torch.no_grad()
def test_the_loss_is_that_of_training(case: Case) -> None:
    """Against what the training scripts of diffusers compute, written out from their schedulers."""
    latent, conditions, timesteps, noise = inputs(case)
    losses = case.model.losses(latent, conditions, timesteps, noise)
    if case.family in ("sd3", "flux"):
        scheduler = deepcopy(case.pipeline.scheduler)
        levels = torch.linspace(1, 1000, 1000)[timesteps] / 1000
        shift = 3.0 if case.family == "sd3" else 1.0  # what FLUX shifts depends on the size, and only in sampling
        sigmas = shift * levels / (1 + (shift - 1) * levels)
        known = type(scheduler).from_config(scheduler.config).sigmas
        assert all((known - sigma).abs().min() < 1e-6 for sigma in sigmas)
        share = sigmas.reshape(-1, 1, 1, 1)
        noisy, target = (1 - share) * latent + share * noise, noise - latent
        predicted = network_call(case, noisy, 1000 * sigmas, 3.5)
        if case.family == "sd3":  # the clean latent that is predicted, against the clean latent
            predicted, target = noisy - share * predicted, latent
    else:
        scheduler = diffusers.DDPMScheduler.from_config(case.pipeline.scheduler.config)
        noisy = scheduler.add_noise(latent, noise, timesteps)
        predicted = network_call(case, noisy, timesteps, 3.5)
        target = scheduler.get_velocity(latent, noise, timesteps) if case.family == "sd2" else noise
    torch.testing.assert_close(losses, (predicted - target).square().mean((1, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_sampled_latents_are_the_pipelines(case: Case, guidance: float) -> None:
    prompts, seeds = PROMPTS[:2], [7, 8]
    expected = case.sample(prompts, seeds, 4, guidance)
    found, _ = case.model.generate(case.conditions(prompts), seeds, size=SIZE, steps=4, guidance=guidance)
    if guidance == 1:
        assert torch.equal(found, expected)
    else:  # the last bits of an encoded text depend on how many were encoded together
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


PATTERNS = ("cross_kv", "cross_attention", "attention", "matrices", "all")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_of_samples_are_autograds(case: Case, pattern: str, dtype: torch.dtype, tolerance: float) -> None:
    model = case.model.over(deepcopy(case.model.network).to(dtype))
    selected = model.select(pattern)
    latent, conditions, timesteps, noise = inputs(case)
    batch = Inputs(latent.to(dtype), {k: v.to(dtype) for k, v in conditions.items()}, timesteps, noise.to(dtype))

    def losses(network: nn.Module, inputs: Inputs) -> Tensor:
        return model.over(network).losses(*inputs)

    found = per_sample_gradients(model.network, selected, losses, batch)
    assert found.keys() == selected.keys()
    total = torch.cat([found[name].flatten(1) for name in selected], 1)
    for weight in selected.values():
        weight.requires_grad_()
    for row, gradients in enumerate(total):
        conditions = {name: value[[row]] for name, value in batch.conditions.items()}
        alone = Inputs(batch.latent[[row]], conditions, batch.timesteps[[row]], batch.noise[[row]])
        expected = torch.autograd.grad(losses(model.network, alone).sum(), list(selected.values()))
        joined = torch.cat([gradient.flatten() for gradient in expected])
        assert joined.norm() > 0
        assert (gradients - joined).norm() <= tolerance * joined.norm()


def test_matrices_are_all_linear_layers_and_convolutions(case: Case) -> None:
    network, idle = case.model.network, case.model.denoiser.idle
    layers = {name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    layers = {name for name in layers if not name.startswith(idle)}
    assert {name.removesuffix(".weight") for name in case.model.select("matrices")} == layers
    for narrow, wide in pairwise(PATTERNS[:3]):
        assert case.model.select(narrow).keys() < case.model.select(wide).keys()
    used = {name for name, _ in network.named_parameters() if not name.startswith(idle)}
    assert case.model.select("all").keys() == used


def test_predictions_depend_on_all_weights_that_are_selected_and_no_others(case: Case) -> None:
    network = deepcopy(case.model.network).requires_grad_()
    case.model.over(network).losses(*inputs(case)).sum().backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved == case.model.select("all").keys()


def samples(case: Case, ids: list[int]) -> dict[str, Tensor]:
    """Whole samples with one view and one caption each, by their ids."""
    latents = [torch.randn(case.model.latent_shape[0], *SIZE, generator=torch.Generator().manual_seed(i)) for i in ids]
    conditions = case.conditions([PROMPTS[sample % len(PROMPTS)] for sample in ids])
    return {
        "id": torch.tensor(ids),
        "latent": torch.stack(latents)[:, None],
        **{name: value[:, None] for name, value in conditions.items()},
        "captions": torch.ones(len(ids), dtype=torch.int64),
    }


def rows(case: Case, ids: list[int]) -> Tensor:
    """Gradients of samples in rows, [B, P]."""
    output = Output(draws=Draws(timesteps=4, window=(100, 900)))
    return sample_gradients(case.model, case.model.select("cross_attention"), samples(case, ids), output).flat()


def test_scores_do_not_depend_on_the_batch_and_a_sample_finds_itself(case: Case) -> None:
    ids = list(range(6))
    together = rows(case, ids)
    apart = torch.cat([rows(case, ids[:1]), rows(case, ids[1:3]), rows(case, ids[3:])])
    scores, again = (rows @ rows.T for rows in map(normalize, (together, apart)))
    torch.testing.assert_close(scores, again, rtol=0, atol=1e-5)
    assert scores.argmax(1).tolist() == ids


def test_a_model_is_the_same_wherever_it_lies(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.folder, tmp_path / "moved")
    assert load(tmp_path / "moved").digest == load(case.folder).digest
    network = tmp_path / "moved" / ("transformer" if case.family in ("sd3", "flux", "pixart") else "unet")
    assert torch.equal(load(network).predict(*_asked(case)), case.model.predict(*_asked(case)))
    make_pipeline("sd1" if case.family != "sd1" else "sd2", tmp_path / "other")
    assert load(tmp_path / "other").digest != load(case.folder).digest


def _asked(case: Case) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    noisy, conditions, timesteps, _ = inputs(case)
    return noisy, case.model.process.times(timesteps), conditions
