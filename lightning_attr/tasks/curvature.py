"""Fit the curvature of a trained model: a ``fit`` without an optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules import LatentDataModule
from datamodules.errors import UserError
from datamodules.store import Store
from lightning_attr.artifacts import file_digest
from lightning_attr.console import warn
from lightning_attr.curvature import DiagonalCurvature, squared_sums
from lightning_attr.denoisers import select_weights
from lightning_attr.diffusion import denoising_loss
from lightning_attr.gradients import linear_weights, per_sample_gradients
from lightning_attr.noise import keyed_generator
from lightning_attr.tasks.analysis import AnalysisTask
from lightning_attr.tasks.latent_diffusion import check_shapes


class Curvature(AnalysisTask):
    """The diagonal Fisher over the store, from true per-sample gradients, summed in float64.

    Each epoch adds one draw per sample: a random timestep, noise, view and caption, keyed by the sample's id. The
    sums are buffers, so Lightning checkpoints and resumes them; they are over all ranks, and the same on each. Writes
    ``curvature.safetensors``.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``.
        weights: ``cross_kv``, ``cross_attention``, ``attention``, ``all``, or a regular expression.
        seed: Of the draws.
    """

    def __init__(self, checkpoint: str, weights: str = "cross_kv", seed: int = 0) -> None:
        super().__init__(checkpoint)
        self.weights = weights
        self.seed = seed
        self.selected = select_weights(self.denoiser, weights)
        if linear_weights(self.denoiser, self.selected) is None:
            warn("weights: not all of linear layers; per-sample gradients go through torch.func, which is slow")
        size = sum(weight.numel() for weight in self.selected.values())
        self.register_buffer("squared_sum", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.squared_sum: Tensor
        self.count: Tensor
        self.sum_over_ranks(["squared_sum", "count"])

    @property
    def data(self) -> LatentDataModule:
        """The data of this run, which must come in stored order."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LatentDataModule) or data.order != "stored":
            raise UserError("data: the curvature needs LatentDataModule with order: stored")
        return data

    def setup(self, stage: str) -> None:
        """Check the store against the network."""
        super().setup(stage)
        check_shapes(Store(self.data.store), self.denoiser)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Add the squared gradients of a batch of every rank. There is no optimizer; the loss returned is zero.

        Adding at every step costs less than the gradients, and resuming is exact: no rank has sums of its own to lose.
        """
        latent, text = batch["latent"], batch["text"]
        timesteps, noise = self._draws(batch["id"].tolist(), latent.shape[1:])
        inputs = (latent, text, timesteps.to(latent.device), noise.to(latent.device))
        gradients = per_sample_gradients(self.denoiser, self.selected, self._losses, inputs)
        sums = squared_sums(gradients)
        flat = torch.cat([sums[name].reshape(-1) for name in self.selected])
        self.squared_sum += self.trainer.strategy.reduce(flat, reduce_op="sum")
        self.count += self.trainer.strategy.reduce(torch.full_like(self.count, len(latent)), reduce_op="sum")
        return 0 * self.unused

    def _losses(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        latent, text, timesteps, noise = batch
        return denoising_loss(network, self.scheduler, latent, text, timesteps, noise)

    def _draws(self, ids: list[int], shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return one timestep and one noise per sample, whatever the batch: [B] and [B, C, H, W]."""
        steps = len(self.scheduler.alphas_cumprod)
        generators = [keyed_generator("curvature", self.seed, self.current_epoch, sample_id) for sample_id in ids]
        timesteps = torch.tensor([int(rng.integers(0, steps)) for rng in generators])
        noise = np.stack([rng.standard_normal(tuple(shape), dtype=np.float32) for rng in generators])
        return timesteps, torch.from_numpy(noise)

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""
        return

    def on_fit_end(self) -> None:
        """Write ``curvature.safetensors``."""
        mean = (self.squared_sum / self.count).cpu()
        if not torch.isfinite(mean).all():
            raise UserError("curvature: not finite; the checkpoint's weights give infinite gradients")
        if self.trainer.is_global_zero:
            self.curvature(mean).save(self.run / "curvature.safetensors")

    def curvature(self, mean: Tensor) -> DiagonalCurvature:
        """Cut the flat mean of squares [P] into the selected weights."""
        sizes = [weight.numel() for weight in self.selected.values()]
        parts = zip(self.selected.items(), mean.split(sizes), strict=True)  # type: ignore[no-untyped-call]
        settings: dict[str, Any] = {
            "weights": self.weights,
            "draws": int(self.count),
            "samples": len(self.data.positions),
            "seed": self.seed,
            "digests": {**self.digests(), "store": file_digest(self.data.store)},
        }
        return DiagonalCurvature({name: part.reshape(weight.shape) for (name, weight), part in parts}, settings)
