"""The process: how a sample is noised, what the denoiser is trained to predict of it, and the steps back.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from lightning_attr.errors import UserError, expect_within, one_line, quoted
from lightning_attr.models.build import build_class
from lightning_attr.models.objective import Weighting

#: What a denoiser may be trained to predict, see :func:`prediction_target`.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

#: Schedulers that do not sample what the model was trained to, and why.
REFUSED: Mapping[str, str] = {
    "LCMScheduler": "it is of distilled models, whose training had another loss",
    "TCDScheduler": "it is of distilled models, whose training had another loss",
    "DPMSolverSDEScheduler": "its steps draw random numbers that no seed of a query determines",
}

#: The ratio of signal to noise up to which the loss of ``min_snr`` weighting counts (Hang et al. 2023).
MOST_SNR = 5.0


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


def min_snr_weights(alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Return how much the losses at the levels [B] count, [B]: the clean latent's counts ``min(snr, 5)``.

    The noise's loss is that of the clean latent times the ratio of signal to noise, the velocity's times one more.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction_type == "epsilon":
        return (MOST_SNR / snr).clamp(max=1)
    return snr.clamp(max=MOST_SNR) / (snr + 1 if prediction_type == "v_prediction" else 1)


class Process(ABC):
    """How samples are noised, as training did it, and the sampling steps of a scheduler of diffusers.

    Args:
        config: Of the scheduler; ``_class_name`` defaults to :attr:`default`.

    Attributes:
        levels: How many timesteps there are; the first has the least noise.

    Raises:
        UserError: The class or one of its arguments does not exist, or it is of another process.
    """

    default: ClassVar[str]
    levels: int
    weightings: ClassVar[Sequence[Weighting]]

    def __init__(self, config: Mapping[str, Any]) -> None:
        steps = config.get("num_train_timesteps", 1000)
        if not isinstance(steps, int) or not 1 <= steps <= 1_000_000:
            raise UserError(f"model.scheduler.num_train_timesteps: found {steps!r}, expected 1 to 1000000")
        self._scheduler = build_class("model.scheduler", {"_class_name": self.default, **config}, SchedulerMixin)
        if (why := REFUSED.get(self.name)) is not None:
            raise UserError(f"model.scheduler: found {self.name}, expected another: {why}")
        for name, argument in signature(type(self._scheduler).__init__).parameters.items():
            if isinstance(argument.default, bool) and not isinstance(found := config.get(name, True), bool):
                raise UserError(f"model.scheduler.{name}: found {quoted(found)}, expected true or false")

    @abstractmethod
    def noised(self, latent: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents noised to ``timesteps`` int64 [B], and what is to be predicted of them, [B, C, H, W]."""

    @abstractmethod
    def times(self, timesteps: Tensor) -> Tensor:
        """Return what the network is told of ``timesteps`` int64 [B], [B]."""

    @abstractmethod
    def weights(self, weighting: Weighting, timesteps: Tensor) -> Tensor:
        """Return how much losses at ``timesteps`` int64 [B] count, [B]."""

    def weighted(self, losses: Tensor, timesteps: Tensor, weighting: Weighting) -> Tensor:
        """Return losses [B] at ``timesteps`` int64 [B] as training counts them."""
        return losses if weighting == "none" else losses * self.weights(weighting, timesteps).to(losses)

    def check_weighting(self, weighting: Weighting) -> None:
        """Refuse a weighting of another process.

        Raises:
            UserError: It is one.
        """
        if weighting not in self.weightings:
            raise UserError(
                f"objective.weighting: found {weighting!r}, expected {' or '.join(self.weightings)} with {self.name}"
            )

    def sampled(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        latent: Tensor,
        generators: Sequence[torch.Generator],
        schedule: Mapping[str, Any],
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield (timestep, latent after its step, clean latent predicted at it) of every sampling step.

        Args:
            predict: ``(noisy latent, timestep) -> prediction``.
            latent: The noise to start from, of variance 1.
            generators: Of the noise that steps add, one for each sample.
            schedule: What the scheduler takes to set its timesteps.

        Raises:
            UserError: It refuses that.
        """
        scheduler = self._scheduler
        try:
            scheduler.set_timesteps(**schedule)
        except Exception as error:  # what a scheduler makes of steps that it does not have is its own
            raise UserError(f"scheduler {self.name}: {one_line(error)}") from error
        random = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
        # Some count noise in units of the signal; those of flows have no such number.
        latent = latent * getattr(scheduler, "init_noise_sigma", 1)
        for timestep in scheduler.timesteps:
            scaled = (
                scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
            )
            stepped = scheduler.step(predict(scaled, timestep), timestep, latent, **random)
            latent = stepped.prev_sample
            yield int(timestep), latent, getattr(stepped, "pred_original_sample", None)

    @property
    def name(self) -> str:
        """Return the class of the scheduler."""
        return type(self._scheduler).__name__

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the scheduler's settings."""
        return self._scheduler.config  # type: ignore[no-any-return]


class Diffusion(Process):
    """A diffusion process: noise is mixed in by a schedule of betas."""

    default = "DDPMScheduler"
    weightings = ("none", "min_snr")

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
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
        self._alphas_cumprod = levels if self.name == self.default else self._as_trained(levels)
        self.levels = len(levels)

    def _as_trained(self, sampled: Tensor) -> Tensor:
        """Return the levels that training has with the scheduler's betas: some samplers change the last.

        Raises:
            UserError: They are of a schedule of the sampler's own, which training knows nothing of.
        """
        own = {name: self.config[name] for name in BETAS if name in self.config}
        try:
            levels: Tensor = build_class("betas", {"_class_name": self.default, **own}, SchedulerMixin).alphas_cumprod
        except UserError:
            levels = torch.empty(0)
        if levels.shape != sampled.shape or not torch.allclose(levels.double(), sampled.double(), 1e-4, 1e-7):
            raise UserError(
                f"model.scheduler: found a schedule of {self.name} that {self.default} does not have, expected one it "
                "has"
            )
        return levels

    def noised(self, latent: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents noised to ``timesteps`` int64 [B], and what is to be predicted of them, [B, C, H, W]."""
        alphas_cumprod = self._alphas_cumprod.to(latent.device)[timesteps]
        target = prediction_target(latent, noise, alphas_cumprod, self._prediction_type)
        return add_noise(latent, noise, alphas_cumprod), target

    def times(self, timesteps: Tensor) -> Tensor:
        """Return the timesteps themselves."""
        return timesteps

    def weights(self, weighting: Weighting, timesteps: Tensor) -> Tensor:
        """Return those of ``min_snr``, [B]."""
        return min_snr_weights(self._alphas_cumprod.to(timesteps.device)[timesteps], self._prediction_type)


#: The settings of a scheduler by which training noises.
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


#: The settings of a flow's scheduler by which it shifts sizes: fewest and most tokens, and the shift of both.
SHIFTS = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")


class FlowMatching(Process):
    """A straight way from latent to noise, whose direction is predicted (rectified flow; Stable Diffusion 3, 2).

    At a share of noise sigma the noisy latent is ``(1 - sigma) x + sigma eps`` and the target ``eps - x``. The shares
    are the scheduler's own, shifted as it says; the network is told them in thousandths.
    """

    default = "FlowMatchEulerDiscreteScheduler"
    weightings = ("none", "sigma_squared")

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if self.name != self.default:
            raise UserError(f"model.scheduler: found {self.name}, expected {self.default}, as the model is a flow")
        for name in ("stochastic_sampling", "invert_sigmas"):
            if self.config[name]:
                raise UserError(f"model.scheduler.{name}: found true, expected false, as no text-to-image flow has it")
        if self.config["use_dynamic_shifting"]:
            for name in SHIFTS:
                if not isinstance(self.config[name], int | float):
                    raise UserError(f"model.scheduler.{name}: found {quoted(self.config[name])}, expected a number")
                expect_within(f"model.scheduler.{name}", self.config[name], 0, 1_000_000)
            few, many = (self.config[name] for name in SHIFTS[:2])
            if few >= many:
                raise UserError(f"model.scheduler.base_image_seq_len: found {few}, expected less than {many}")
        self._sigmas: Tensor = self._scheduler.sigmas.flip(0)
        self._times: Tensor = self._scheduler.timesteps.flip(0)
        if not bool(((self._sigmas > 0) & (self._sigmas <= 1)).all()):
            raise UserError(
                f"model.scheduler.shift: found {self.config['shift']}, expected shares of noise from 0 to 1"
            )
        self.levels = len(self._sigmas)

    def noised(self, latent: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents noised to ``timesteps`` int64 [B], and what is to be predicted of them, [B, C, H, W]."""
        sigma = expand_right(self._sigmas.to(latent.device)[timesteps], latent)
        return (1 - sigma) * latent + sigma * noise, noise - latent

    def times(self, timesteps: Tensor) -> Tensor:
        """Return the shares of noise in thousandths, float32 [B]."""
        return self._times.to(timesteps.device)[timesteps]

    def weights(self, weighting: Weighting, timesteps: Tensor) -> Tensor:
        """Return the squares of the shares of noise, [B]."""
        return self._sigmas.to(timesteps.device)[timesteps].square()
