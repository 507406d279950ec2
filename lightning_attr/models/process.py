"""The process: how a sample is noised, what the denoiser is trained to predict of it, and the steps back.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from lightning_attr.errors import UserError, expect_within, quoted
from lightning_attr.models.build import build_class

#: What a denoiser may be trained to predict, see :func:`prediction_target`.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def expand_right(values: Tensor, like: Tensor) -> Tensor:
    """Append unit axes to ``values`` [B] until it broadcasts against ``like`` [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(latent: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Diffuse ``latent`` [B, C, H, W] to the levels ``alphas_cumprod`` [B]: ``sqrt(a) x + sqrt(1-a) eps`` (DDPM, 4)."""
    level = expand_right(alphas_cumprod, latent)
    return level.sqrt() * latent + (1 - level).sqrt() * noise


def prediction_target(latent: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Return what the denoiser is trained to predict, [B, C, H, W]: the noise, the velocity, or the clean latent.

    Raises:
        ValueError: ``prediction_type`` is none of :data:`PREDICTION_TYPES`.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        level = expand_right(alphas_cumprod, latent)
        return level.sqrt() * noise - (1 - level).sqrt() * latent
    if prediction_type == "sample":
        return latent
    raise ValueError(f"prediction_type: found {prediction_type!r}, expected one of {', '.join(PREDICTION_TYPES)}")


class Diffusion:
    """A diffusion process with the noise schedule of a diffusers scheduler, which also makes the sampling steps.

    Args:
        config: Of the scheduler; ``_class_name`` defaults to ``DDPMScheduler``.

    Attributes:
        levels: How many timesteps there are.

    Raises:
        UserError: The class or one of its arguments does not exist, or it predicts something else.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        steps = config.get("num_train_timesteps", 1000)
        if not isinstance(steps, int) or not 1 <= steps <= 1_000_000:
            raise UserError(f"model.scheduler.num_train_timesteps: found {steps!r}, expected 1 to 1000000")
        self._scheduler = build_class("model.scheduler", {"_class_name": "DDPMScheduler", **config}, SchedulerMixin)
        for name, argument in signature(type(self._scheduler).__init__).parameters.items():
            if isinstance(argument.default, bool) and not isinstance(found := config.get(name, True), bool):
                raise UserError(f"model.scheduler.{name}: found {quoted(found)}, expected true or false")
        if not hasattr(self._scheduler, "alphas_cumprod"):
            raise UserError(f"model.scheduler: found {self.name}, expected one that noises by a schedule of betas")
        found = self._scheduler.config.get("prediction_type")
        if found not in PREDICTION_TYPES:
            raise UserError(
                f"model.scheduler.prediction_type: found {found!r}, expected one of {', '.join(PREDICTION_TYPES)}"
            )
        levels = self._scheduler.alphas_cumprod
        if levels.ndim != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):  # of no number, neither holds
            raise UserError(f"model.scheduler: found betas of {self.name} that are no shares of noise, expected 0 to 1")
        self._prediction_type = str(found)
        self.levels = len(self._scheduler.alphas_cumprod)

    def like(self, other: Diffusion) -> bool:
        """Return whether another process noises alike, and predicts the same."""
        levels, others = self._scheduler.alphas_cumprod, other._scheduler.alphas_cumprod
        return self._prediction_type == other._prediction_type and (
            levels.shape == others.shape and torch.allclose(levels.double(), others.double(), rtol=1e-4, atol=1e-7)
        )

    def noised(self, latent: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents noised to ``timesteps`` int64 [B], and what is to be predicted of them, [B, C, H, W]."""
        alphas_cumprod = self._scheduler.alphas_cumprod.to(latent.device)[timesteps]
        target = prediction_target(latent, noise, alphas_cumprod, self._prediction_type)
        return add_noise(latent, noise, alphas_cumprod), target

    def sampled(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        latent: Tensor,
        generators: Sequence[torch.Generator],
        steps: int,
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield (timestep, latent after its step, clean latent predicted at it) of every sampling step.

        Args:
            predict: ``(noisy latent, timestep) -> prediction``.
            latent: The noise to start from, of variance 1.
            generators: Of the noise that steps add, one for each sample.
            steps: How many.

        Raises:
            UserError: They are more than there are timesteps.
        """
        expect_within("steps", steps, 1, self.levels)
        scheduler = self._scheduler
        scheduler.set_timesteps(steps)
        random = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
        latent = latent * scheduler.init_noise_sigma  # some count noise in units of the signal
        for timestep in scheduler.timesteps:
            prediction = predict(scheduler.scale_model_input(latent, timestep), timestep)
            stepped = scheduler.step(prediction, timestep, latent, **random)
            latent = stepped.prev_sample
            yield int(timestep), latent, getattr(stepped, "pred_original_sample", None)

    @property
    def name(self) -> str:
        """Return the class of the scheduler."""
        return type(self._scheduler).__name__
