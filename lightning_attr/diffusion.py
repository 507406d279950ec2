"""Noising, targets, losses and sampling of a latent diffusion model.

Shapes: B samples, C x H x W a latent, L tokens of E features a text state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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
    denoiser: nn.Module, scheduler: Any, latent: Tensor, text: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """Return the loss of every sample, [B]: the mean squared error of the prediction over C, H and W.

    Args:
        denoiser: A diffusers network ``(noisy latent, timesteps, text) -> .sample``.
        scheduler: A diffusers noise scheduler; its ``alphas_cumprod`` and ``prediction_type`` are used.
        latent: Clean latents, [B, C, H, W].
        text: Text states, [B, L, E].
        timesteps: int64 [B].
        noise: [B, C, H, W].
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(latent.device)[timesteps]
    noisy = add_noise(latent, noise, alphas_cumprod)
    target = prediction_target(latent, noise, alphas_cumprod, scheduler.config.prediction_type)
    prediction: Tensor = denoiser(noisy, timesteps, text).sample
    return (prediction - target).square().flatten(1).mean(1)


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
    latent = noise.to(text.device)
    null = null_text.to(text).expand_as(text)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        prediction = _guided(denoiser, scheduler.scale_model_input(latent, timestep), timestep, text, null, guidance)
        latent = scheduler.step(prediction, timestep, latent, generator=generators).prev_sample
        on_step()
    return latent, noise


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
