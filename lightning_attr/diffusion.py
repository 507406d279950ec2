"""Noising, targets, losses and sampling of a latent diffusion model.

Shapes: B samples, C x H x W a latent, L tokens of E features a text state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attr.errors import UserError


def expand_right(values: Tensor, like: Tensor) -> Tensor:
    """Append unit axes to ``values`` [B] until it broadcasts against ``like`` [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(latent: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Diffuse ``latent`` [B, C, H, W] to the levels ``alphas_cumprod`` [B]: ``sqrt(a) x + sqrt(1-a) eps`` (DDPM, 4)."""
    level = expand_right(alphas_cumprod, latent)
    return level.sqrt() * latent + (1 - level).sqrt() * noise


def prediction_target(latent: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Return what the denoiser is trained to predict, [B, C, H, W]: the noise, or the velocity.

    Raises:
        ValueError: ``prediction_type`` is neither ``epsilon`` nor ``v_prediction``.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        level = expand_right(alphas_cumprod, latent)
        return level.sqrt() * noise - (1 - level).sqrt() * latent
    raise ValueError(f"scheduler.prediction_type: found {prediction_type!r}, expected 'epsilon' or 'v_prediction'")


def denoising_loss(
    denoiser: nn.Module,
    scheduler: Any,
    latent: Tensor,
    text: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    region: Tensor | None = None,
) -> Tensor:
    """Return the loss of every sample, [B]: the mean squared error of the prediction over C, H and W.

    Args:
        denoiser: A diffusers network ``(noisy latent, timesteps, text) -> .sample``.
        scheduler: A diffusers noise scheduler; its ``alphas_cumprod`` and ``prediction_type`` are used.
        latent: Clean latents, [B, C, H, W].
        text: Text states, [B, L, E].
        timesteps: int64 [B].
        noise: [B, C, H, W].
        region: How much each place counts, [H, W]; the mean is weighted by it. None is all alike.
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(latent.device)[timesteps]
    noisy = add_noise(latent, noise, alphas_cumprod)
    target = prediction_target(latent, noise, alphas_cumprod, scheduler.config.prediction_type)
    prediction: Tensor = denoiser(noisy, timesteps, text).sample
    return mean_square(prediction - target, region)


def squared_output(
    denoiser: nn.Module,
    scheduler: Any,
    latent: Tensor,
    text: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    region: Tensor | None = None,
) -> Tensor:
    """Return the mean square of every sample's prediction, [B]: the output function of D-TRAK (section 3).

    The arguments are those of :func:`denoising_loss`; the target plays no part.
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(latent.device)[timesteps]
    prediction: Tensor = denoiser(add_noise(latent, noise, alphas_cumprod), timesteps, text).sample
    return mean_square(prediction, region)


def mean_square(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the mean of the squares of ``values`` [B, C, H, W] over all but the first axis, weighted by [H, W]."""
    squares = values.square()
    if region is None:
        return squares.flatten(1).mean(1)
    return (squares.mean(1) * region).flatten(1).sum(1) / region.sum()


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one CPU generator per seed, so that an image depends neither on its batch nor on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def initial_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Return the noise from which each generator's image is sampled, float32 [B, *shape]."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


@torch.no_grad()
def generate(
    denoiser: nn.Module,
    scheduler: Any,
    text: Tensor,
    null_text: Tensor,
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    steps: int,
    guidance: float,
    on_step: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Sample latents with classifier-free guidance; return them and their initial noise, both [B, C, H, W].

    All randomness comes from ``seeds``: another model given the same ones makes the *same* query.

    Args:
        denoiser: Predicts what the scheduler steps on, see :func:`denoising_loss`.
        scheduler: A diffusers noise scheduler, which makes the steps.
        text: Text states of the prompts, [B, L, E].
        null_text: Text state of the empty caption, [L, E].
        seeds: One seed a row.
        shape: C, H, W.
        steps: Number of sampling steps.
        guidance: Scale of the guidance; 1 means none.
        on_step: Called after every step, for a progress bar.
    """
    generators = seeded_generators(seeds)
    noise = initial_noise(generators, shape)
    latent = start = noise.to(text.device)
    for _, stepped, _ in _trajectory(denoiser, scheduler, text, null_text, start, generators, steps, guidance):
        latent = stepped
        on_step()
    return latent, noise


@torch.no_grad()
def predicted_original(
    denoiser: nn.Module,
    scheduler: Any,
    text: Tensor,
    null_text: Tensor,
    seeds: Sequence[int],
    shape: Sequence[int],
    at: int,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """Return the clean latent that sampling has in view at its step nearest to timestep ``at``, [B, C, H, W].

    The other arguments are those of :func:`generate`.

    Raises:
        UserError: The scheduler predicts no clean latent.
    """
    generators = seeded_generators(seeds)
    noise = initial_noise(generators, shape).to(text.device)
    nearest, result = None, None
    for timestep, _, original in _trajectory(denoiser, scheduler, text, null_text, noise, generators, steps, guidance):
        if nearest is None or abs(timestep - at) < abs(nearest - at):
            nearest, result = timestep, original
    if result is None:
        raise UserError(f"scheduler: {type(scheduler).__name__} predicts no clean latent, which JourneyTRAK needs")
    return result


def _trajectory(
    denoiser: nn.Module,
    scheduler: Any,
    text: Tensor,
    null_text: Tensor,
    latent: Tensor,
    generators: Sequence[torch.Generator],
    steps: int,
    guidance: float,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield (timestep, latent after its step, clean latent predicted at it) of every sampling step."""
    null = null_text.to(text).expand_as(text)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        prediction = _guided(denoiser, scheduler.scale_model_input(latent, timestep), timestep, text, null, guidance)
        stepped = scheduler.step(prediction, timestep, latent, generator=generators)
        latent = stepped.prev_sample
        yield int(timestep), latent, getattr(stepped, "pred_original_sample", None)


def _guided(
    denoiser: nn.Module, latent: Tensor, timestep: Tensor, text: Tensor, null: Tensor, guidance: float
) -> Tensor:
    steps = timestep.to(latent.device).expand(len(latent))
    if guidance == 1:
        conditional: Tensor = denoiser(latent, steps, text).sample
        return conditional
    both: Tensor = denoiser(torch.cat([latent, latent]), torch.cat([steps, steps]), torch.cat([null, text])).sample
    unconditional, guided = both[: len(latent)], both[len(latent) :]
    return unconditional + guidance * (guided - unconditional)
