"""Fit the curvature of a trained model: a ``fit`` without an optimizer.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules import LatentDataModule
from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.curvature import KroneckerCurvature, save_factors
from lightning_attr.curvature.sums import SUMS, DiagonalSums, Sums, layers_on, linear_layers, not_finite
from lightning_attr.digests import file_digest, samples_used
from lightning_attr.errors import UserError
from lightning_attr.layers import captured
from lightning_attr.models import Inputs
from lightning_attr.noise import keyed_generator, random_timesteps
from lightning_attr.runs.whole import expect_all_batches
from lightning_attr.tasks.analysis import AnalysisTask


class Curvature(AnalysisTask):
    """The Fisher over the store, from true per-sample gradients, summed in float64.

    Each epoch adds one draw per sample, or as many as its weight says, so that the mean is over what training sees: a
    random timestep, noise, view and caption, keyed by the sample's id and which of its showings it is. The sums are
    buffers, so Lightning checkpoints and resumes them; they are over all ranks, and the same on each. Writes
    ``curvature.safetensors``; of K-FAC and EK-FAC also ``factors_kfac/`` or ``factors_ekfac/``, the same as kronfluence
    lays it out.

    EK-FAC sums its factors in the first half of ``trainer.max_epochs`` and the eigenvalues along them in the second.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``.
        kind: ``diagonal``, ``kfac`` or ``ekfac``; the last two are of linear layers only.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices``, ``all``, or a regular
            expression; None is the adapter's where there is one, else ``cross_kv``.
        seed: Of the draws.
    """

    makes = ("curvature.safetensors", "factors_kfac", "factors_ekfac")  # those of its kind

    def __init__(
        self,
        checkpoint: InputPath,
        kind: Literal["diagonal", "kfac", "ekfac"] = "diagonal",
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(checkpoint)
        self.kind = kind
        self.weights = self.model.chosen(weights)
        self.seed = seed
        self.selected = self.model.select(self.weights)
        self.sums = self._sums()
        self.count: Tensor
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.sum_over_ranks(["count", *(f"sums.{name}" for name, _ in self.sums.named_buffers())])

    def _sums(self) -> Sums:
        if self.kind == "diagonal":
            return DiagonalSums(self.denoiser, self.selected)
        return SUMS[self.kind](self.denoiser, self.selected, self._shared_inputs())

    def _shared_inputs(self) -> dict[str, str]:
        """Return the layers whose input is a condition itself, and which: the network is run once to see."""
        layers = linear_layers(self.denoiser, self.selected, self.kind)
        latent, timestep = torch.zeros(1, *self.model.latent_shape), torch.zeros(1, dtype=torch.int64)
        shapes = self.model.denoiser.conditions
        conditions = {name: torch.zeros(1, *(size or 1 for size in shape)) for name, shape in shapes.items()}

        def values() -> Tensor:
            return self.model.predict(latent, timestep, conditions).flatten(1).sum(1)

        return layers_on(conditions, captured(layers, values), layers)

    @property
    def data(self) -> LatentDataModule:
        """Return the data of this run, which must come in stored order."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LatentDataModule) or data.order != "stored":
            raise UserError("data: the curvature needs LatentDataModule with order: stored")
        return data

    def setup(self, stage: str) -> None:
        """Check the store against the network, and that the epochs divide into the parts of the fit."""
        super().setup(stage)
        expect_all_batches("trainer.limit_train_batches", self.trainer.limit_train_batches)
        self.model.was_trained_on(Store(self.data.store))
        epochs, parts = self.trainer.max_epochs or 0, self.sums.parts
        if parts > 1 and (epochs < parts or epochs % parts):
            expected = f"expected a multiple of {parts} for kind {self.kind!r}, which is fitted in {parts} equal parts"
            raise UserError(f"trainer.max_epochs: found {self.trainer.max_epochs}, {expected}")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Add the share of a batch of every rank. There is no optimizer; the loss returned is zero.

        Adding at every step costs less than the gradients, and resuming is exact: no rank has sums of its own to lose.
        """
        latent = batch["latent"]
        timesteps, noise = self._draws(batch["showing"].tolist(), latent.shape[1:])
        inputs = Inputs(latent, self.model.conditions_of(batch), timesteps.to(latent.device), noise.to(latent.device))
        self.sums.enter(self._part(), self.trainer.strategy.broadcast)
        share = self.sums.of_batch(self.denoiser, self._losses, inputs)
        self.sums.add(self.trainer.strategy.reduce(share, reduce_op="sum"))
        self.count += self.trainer.strategy.reduce(torch.full_like(self.count, len(latent)), reduce_op="sum")
        return 0 * self.unused

    def _part(self) -> int:
        """Return which of the equal parts of the fit this epoch belongs to."""
        return self.current_epoch * self.sums.parts // self.trainer.max_epochs if self.sums.parts > 1 else 0  # type: ignore[operator]

    def _losses(self, network: nn.Module, inputs: Inputs) -> Tensor:
        return self.model.over(network).losses(*inputs)

    def _draws(self, ids: list[int], shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return one timestep and one noise per showing, whatever the batch: [B] and [B, C, H, W]."""
        levels, sampling = self.model.process.levels, self.model.sampling
        generators = [keyed_generator("curvature", self.seed, self.current_epoch, sample_id) for sample_id in ids]
        timesteps = torch.tensor([int(random_timesteps(rng, levels, sampling)) for rng in generators])
        noise = np.stack([rng.standard_normal(tuple(shape), dtype=np.float32) for rng in generators])
        return timesteps, torch.from_numpy(noise)

    def configure_optimizers(self) -> None:
        """Optimise nothing."""
        return

    def on_fit_end(self) -> None:
        """Write ``curvature.safetensors``, and what kronfluence reads."""
        curvature = self.sums.curvature(self.settings())
        if not curvature.finite():
            raise not_finite()
        if self.trainer.is_global_zero:
            if isinstance(curvature, KroneckerCurvature):
                save_factors(self.run / f"factors_{self.kind}", curvature)
            curvature.save(self.run / "curvature.safetensors")

    def settings(self) -> dict[str, Any]:
        """Return what the curvature depends on."""
        return {
            "weights": self.weights,
            "draws": int(self.count),
            "samples": samples_used(Store(self.data.store), self.data.positions),
            "precision": self.trainer.precision,
            "seed": self.seed,
            "digests": {**self.digests(), "store": file_digest(self.data.store)},
        }
