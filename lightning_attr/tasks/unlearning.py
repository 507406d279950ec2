"""Unlearn one query: natural-gradient ascent on its loss.

Shapes: P selected weights in one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.curvature import Damping, curvature_digest
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError, expect_within
from lightning_attr.noise import Draws, draw_timesteps, of_query, own_noise, shared_noise
from lightning_attr.optim import NaturalGradient
from lightning_attr.region import read_region
from lightning_attr.runs.whole import expect_all_batches
from lightning_attr.tasks.changed_weights import ChangedWeights


class DrawBatches:
    """The micro-batches of draws that make one optimizer step; an epoch. Resuming continues after the last one done.

    Ranks take turns. They do not cut micro-batches up, for the bits of a gradient depend on what is computed together;
    where the micro-batches run out, some ranks get an empty one.
    """

    def __init__(self, draws: int, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        batches = list(torch.arange(draws).split(batch_size))  # type: ignore[no-untyped-call]
        batches += [torch.arange(0)] * (-len(batches) % ranks)
        self._batches: list[Tensor] = batches[rank::ranks]
        self._done = 0

    def __len__(self) -> int:
        """Return the number of micro-batches in a step."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the draws' indices, int64 [at most batch_size]."""
        self._done %= len(self)
        while self._done < len(self):
            self._done += 1
            yield self._batches[self._done - 1]

    def state_dict(self) -> dict[str, int]:
        """Return how many were handed out; Lightning saves it in checkpoints."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after as many."""
        self._done = state["done"]


class Unlearning(ChangedWeights):
    """``theta + (step_size / N) F^-1 grad L(query)``, once or ``trainer.max_steps`` times (AbU, equation 6).

    With a diagonal curvature it is AbU, with EK-FAC it is AbU+, and without one plain gradient ascent, the paper's
    ablation. Writes ``weights.safetensors``, the changed weights only.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``.
        store: The store that it was trained on; N is how many showings of its samples an epoch has.
        queries: A query store.
        query: The id of the query to unlearn.
        curvature: A ``curvature.safetensors`` of any kind, fitted on the checkpoint, or on its base for weights that
            this has as well; None is plain gradient ascent.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices``, ``all``, or a regular
            expression; None is the adapter's where there is one, else ``cross_kv``.
        step_size: The paper's alpha.
        damping: Added to the curvature before it is inverted.
        draws: Where the query's loss is measured. In mode ``own``, every step takes fresh noises.
        batch_size: Draws in a micro-batch; the gradients of one step are accumulated over them.
        region: A greyscale image, white where the query is asked about; its loss is measured there alone. None is all
            of it.
    """

    def __init__(
        self,
        checkpoint: InputPath,
        store: InputPath,
        queries: InputPath,
        query: int,
        curvature: InputPath | None = None,
        weights: str | None = None,
        step_size: float = 0.01,
        damping: Damping = Damping(),
        draws: Draws = Draws(),
        batch_size: int = 10,
        region: InputPath | None = None,
    ) -> None:
        super().__init__(checkpoint, queries, query, weights)
        self.store = store
        expect_within("model.step_size", step_size, 0)
        expect_within("model.batch_size", batch_size, 1)
        self.step_size = step_size
        self.damping = damping
        self.draws = draws
        self.batch_size = batch_size
        self.curvature_path = curvature
        self.region_path = region
        self.region: Tensor | None
        size = Store(queries).schema.fields["latent"].shape[-2:]
        white = read_region(region, size) if region is not None else None
        self.register_buffer("region", white, persistent=False)
        self.query_loss: Tensor
        self.gradient: Tensor
        self.register_buffer("query_loss", torch.zeros(()))
        self.register_buffer(
            "gradient", torch.zeros(sum(w.numel() for w in self.selected.values()), dtype=torch.float64)
        )
        self.sum_over_ranks(["query_loss", "gradient", *(f"denoiser.{name}" for name in self.selected)])
        self.original = {name: weight.detach().clone() for name, weight in self.selected.items()}
        self.timesteps = draw_timesteps(draws, self.model.process.levels)
        self.curvature = None if curvature is None else self.fitted_curvature(curvature, self.original, damping)

    def setup(self, stage: str) -> None:
        """Read the query and let one epoch be one step."""
        super().setup(stage)
        self.model.was_trained_on(Store(self.store))
        expect_all_batches("trainer.limit_train_batches", self.trainer.limit_train_batches)
        self.trainer.accumulate_grad_batches = len(self.train_dataloader())

    def train_dataloader(self) -> DrawBatches:
        """Return this rank's micro-batches of one step."""
        return DrawBatches(len(self.draws), self.batch_size, self.trainer.global_rank, self.trainer.world_size)

    def training_step(self, indices: Tensor, batch_idx: int) -> Tensor:
        """Add the gradient of the query's loss at the draws ``indices`` of every rank; the loss returned is zero.

        The sum is the same on every rank, and in float64, so that the step hardly depends on how many ranks there are.
        """
        if batch_idx == 0:
            self.gradient.zero_()
            self.query_loss.zero_()
        loss, gradient = self._share(indices)
        loss = self.trainer.strategy.reduce(loss, reduce_op="sum")
        if not torch.isfinite(loss):
            raise UserError(
                f"query {self.query}: its loss is {loss.item()} at step {self.global_step}, expected a finite one"
            )
        self.gradient += self.trainer.strategy.reduce(gradient, reduce_op="sum")
        self.query_loss += loss
        if batch_idx + 1 == self.trainer.accumulate_grad_batches:  # Lightning's own mean over a step is not resumed
            self.log(
                "unlearn/query_loss", self.query_loss,
                on_step=False, on_epoch=True, batch_size=1, sync_dist=True, prog_bar=True,
            )  # fmt: skip
        return 0 * self.unused

    def _share(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the draws' share of the query's loss, a scalar, and its gradient by the selected weights, [P]."""
        if len(indices) == 0:
            return torch.zeros_like(self.query_loss), torch.zeros_like(self.gradient)
        loss = self._losses(indices).sum() / len(self.draws)
        gradients = torch.autograd.grad(loss, list(self.selected.values()))
        return loss.detach(), torch.cat([gradient.reshape(-1) for gradient in gradients]).double()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Hand the sum to the optimizer, which minimises: minus the gradient."""
        sizes = [weight.numel() for weight in self.selected.values()]
        parts = self.gradient.split(sizes)  # type: ignore[no-untyped-call]
        for weight, part in zip(self.selected.values(), parts, strict=True):
            weight.grad = -part.reshape(weight.shape).to(weight.dtype)

    def _losses(self, indices: Tensor) -> Tensor:
        """Return the query's losses at the draws ``indices``."""
        timesteps = self.timesteps.to(indices.device)[indices]
        return self.model.losses(*self.query_inputs(timesteps, self._noise(indices.tolist())), self.region)

    def _noise(self, indices: list[int]) -> Tensor:
        shape = self.latent.shape
        if self.draws.mode == "shared":
            return shared_noise(self.draws, indices, shape)
        fresh = self.global_step * len(self.draws)
        return own_noise(self.draws, [fresh + index for index in indices], shape, of_query(self.query))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the natural gradient, or plain gradient ascent without a curvature."""
        learning_rate = self.step_size / int(Store(self.store).weights.sum())
        return NaturalGradient(self.selected, learning_rate, self._precondition)

    def _precondition(self, gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return gradients if self.curvature is None else self.curvature.inverse(gradients, self.damping)

    def on_fit_end(self) -> None:
        """Write ``weights.safetensors``, and log what the last step did to the query's loss."""
        if self.trainer.is_global_zero:
            save_tensors(self.run / "weights.safetensors", "unlearned weights", self.selected, self.settings())
        if self.logger is not None:
            self.to(self.trainer.strategy.root_device)
            with torch.no_grad():
                batches = [indices for indices in self.train_dataloader() if len(indices)]
                losses = [self._losses(indices.to(self.device)).sum() for indices in batches]
            total = self.trainer.strategy.reduce(sum(losses, self.query_loss.new_zeros(())), reduce_op="sum")
            self.logger.log_metrics({"unlearn/query_loss": float(total) / len(self.draws)}, step=self.global_step)

    def settings(self) -> dict[str, Any]:
        """Return what the changed weights depend on."""
        return {
            "query": self.query,
            "weights": self.weights,
            "step_size": self.step_size,
            "steps": self.global_step,
            "precision": self.trainer.precision,
            "damping": vars(self.damping),
            "draws": vars(self.draws),
            "digests": self.digests(),
        }

    def digests(self) -> dict[str, str]:
        """Return the digests of everything that this task was given."""
        files = {"store": self.store, "queries": self.queries}
        if self.region_path is not None:
            files["region"] = self.region_path
        digests = {**super().digests(), **{name: file_digest(path) for name, path in files.items()}}
        return (
            digests if self.curvature_path is None else digests | {"curvature": curvature_digest(self.curvature_path)}
        )
