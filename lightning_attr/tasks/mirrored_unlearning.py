"""Unlearn one query as MUCS does: training goes on, while the query's loss is driven up to that of knowing nothing.

Shapes: D draws, C x H x W a latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules import LatentDataModule
from datamodules.store import Store
from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.digests import file_digest, samples_used
from lightning_attr.errors import UserError, expect_within
from lightning_attr.noise import Draws, batch_noise, draw_timesteps, keyed_generator, of_query, random_timesteps
from lightning_attr.samples import as_trained
from lightning_attr.tasks.changed_weights import ChangedWeights


def mirrored_loss(retain: Tensor, query: Tensor, null: Tensor, forget: float) -> Tensor:
    """Return ``L_retain - forget * min(L_forget, L_null)``, a scalar; beyond the null loss the query has no pull."""
    return retain - forget * torch.minimum(query, null)


class MirroredUnlearning(ChangedWeights):
    """AdamW on ``L_retain - forget * min(L_forget, L_null)`` until ``L_forget`` is ``until`` times ``L_null`` (MUCS).

    ``L_retain`` is the training loss of a batch of the store, ``L_forget`` the query's loss, and ``L_null`` the query's
    loss under a network that predicts zero, the mean square of its target: about 1 where the noise is predicted. That
    is our reading of the paper's null loss, which must exist for unconditional models as well, so it cannot be the loss
    without a caption. The minimum bounds the ascent: there is no pull beyond it. Writes ``weights.safetensors``, the
    changed weights only, for the method ``Mucs``.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``.
        queries: A query store.
        query: The id of the query to unlearn.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices``, ``all``, or a regular
            expression; None is the adapter's where there is one, else ``all``.
        learning_rate: Of AdamW; the paper takes a tenth of training's.
        forget: How much the query's loss counts against that of the store.
        until: Stop when the query's loss is this share of the null loss; None takes all steps of the trainer.
        query_draws: Random draws of the query in a step.
        draws: Where the query's loss is measured to see whether to stop.
        seed: Of the noise.
    """

    def __init__(
        self,
        checkpoint: InputPath,
        queries: InputPath,
        query: int,
        weights: str | None = None,
        learning_rate: float = 1e-5,
        forget: float = 0.2,
        until: float | None = 0.95,
        query_draws: int = 16,
        draws: Draws = Draws(),
        seed: int = 0,
    ) -> None:
        super().__init__(checkpoint, queries, query, weights, otherwise="all")
        expect_within("model.learning_rate", learning_rate, 0)
        expect_within("model.forget", forget, 0, 1000)
        expect_within("model.until", until, 0, 1000)
        expect_within("model.query_draws", query_draws, 1)
        self.learning_rate = learning_rate
        self.forget = forget
        self.until = until
        self.query_draws = query_draws
        self.draws = draws
        self.seed = seed
        self.timesteps = draw_timesteps(draws, self.model.process.levels)

    @property
    def data(self) -> LatentDataModule:
        """Return the data of this run: what to retain."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LatentDataModule):
            raise UserError(f"data: found {type(data).__name__}, expected LatentDataModule with what to retain")
        return data

    def setup(self, stage: str) -> None:
        """Read the query, and check the stores against the network."""
        super().setup(stage)
        self.model.was_trained_on(Store(self.data.store))

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> int | None:
        """End the run if the query is forgotten; asked before every step, so that a resumed run stops where it would.

        Raises:
            UserError: There is nothing to forget.
        """
        if self.until is None:
            return None
        share = self.forgotten()
        self.log_step("unlearn/share_of_null_loss", share)
        if not self.trainer.strategy.reduce_boolean_decision(share >= self.until):
            return None
        if self.global_step == 0:
            raise UserError(
                f"query {self.query}: its loss is {share:.3f} of the null loss before any step, expected less than "
                f"model.until, {self.until}"
            )
        self.trainer.should_stop = True
        return -1

    @torch.no_grad()
    def forgotten(self) -> float:
        """Return the query's loss on the fixed draws as a share of the null loss."""
        shape = self.latent.shape
        ids = [of_query(self.query)]
        noise = torch.cat([batch_noise(self.draws, draw, shape, ids, 0, 0) for draw in range(len(self.draws))])
        loss, null = self._query_losses(self.timesteps, noise)
        return float(loss.mean() / null.mean())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch and of random draws of the query.

        The query's draws are the same on every rank, and the divisor is as in training: DDP's mean over ranks is then
        the gradient of the mean over all of their samples.
        """
        losses = self._retain_losses(batch)
        local = torch.stack([losses.detach().sum(), losses.new_tensor(len(losses))])
        total, divisor = self.trainer.strategy.reduce(local, reduce_op="mean")
        loss, null = (values.mean() for values in self._query_losses(*self._random_draws()))
        for name, value in (("retain", total / divisor), ("query", loss.detach())):
            if not torch.isfinite(value):
                raise UserError(
                    f"query {self.query}: the {name} loss is {value.item()} at step {self.global_step}, expected a "
                    "finite one; lower model.learning_rate"
                )
            self.log_step(f"unlearn/{name}_loss", value)
        return mirrored_loss(losses.sum() / divisor, loss, null, self.forget)

    def _retain_losses(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model.losses(*as_trained(self.model, batch, self.seed, self.current_epoch))

    def _random_draws(self) -> tuple[Tensor, Tensor]:
        """Return timesteps int64 [D] and noises [D, C, H, W] of this step."""
        generator = keyed_generator("mirrored", self.seed, self.query, self.global_step)
        levels, sampling = self.model.process.levels, self.model.sampling
        timesteps = random_timesteps(generator, levels, sampling, self.query_draws)
        noise = generator.standard_normal((self.query_draws, *self.latent.shape), dtype=np.float32)
        return torch.from_numpy(timesteps), torch.from_numpy(noise)

    def _query_losses(self, timesteps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses of the network, and of one that predicts zero, both [D]."""
        inputs = self.query_inputs(timesteps, noise)
        return self.model.losses(*inputs), self.model.null_losses(inputs.latent, inputs.timesteps, inputs.noise)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, as in training."""
        return torch.optim.AdamW(list(self.selected.values()), self.learning_rate, weight_decay=0.0)

    def on_fit_end(self) -> None:
        """Write ``weights.safetensors``.

        Raises:
            UserError: The trainer's steps did not suffice.
        """
        self.to(self.trainer.strategy.root_device)
        share = self.forgotten()
        if self.until is not None and share < self.until:
            raise UserError(
                f"query {self.query}: its loss is {share:.3f} of the null loss after {self.global_step} steps, "
                f"expected model.until, {self.until}; raise trainer.max_steps"
            )
        if self.trainer.is_global_zero:
            save_tensors(self.run / "weights.safetensors", "mirrored weights", self.selected, self.settings())

    def settings(self) -> dict[str, Any]:
        """Return what the changed weights depend on."""
        names = ("query", "weights", "learning_rate", "forget", "until", "query_draws", "seed")
        return {
            **{name: getattr(self, name) for name in names},
            "steps": self.global_step,
            "batch_size": self.data.batch_size,
            "samples": samples_used(Store(self.data.store), self.data.positions),
            "data_seed": self.data.seed,
            "draws": vars(self.draws),
            "digests": self.digests(),
        }

    def digests(self) -> dict[str, str]:
        """Return the digests of everything that this task was given."""
        files = {"store": self.data.store, "queries": self.queries}
        return {**super().digests(), **{name: file_digest(path) for name, path in files.items()}}
