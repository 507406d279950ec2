"""What ways back through training steps share: the queries' gradients, their directions, and a step for all of them.

Shapes: Q queries, P numbers of all selected weights, D draws, C x H x W a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules import LatentDataModule
from datamodules.store import Store
from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.console import progress
from lightning_attr.digests import file_digest, samples_used
from lightning_attr.errors import UserError
from lightning_attr.methods.attribute import check_stores, chosen_queries
from lightning_attr.methods.base import Batch, Context
from lightning_attr.models import Inputs
from lightning_attr.noise import Draws, batch_noise, draw_timesteps, of_query
from lightning_attr.region import read_region
from lightning_attr.runs.whole import expect_all_batches
from lightning_attr.tasks.analysis import AnalysisTask
from lightning_attr.virtual_steps import batch_loss, held_by_backward, loss_gradient, scaled_predictions

#: Bytes that the queries take which go together; on a GPU it is half of what is free.
QUERY_BYTES = 2**30

#: By how much the norm of an adjoint may grow before something is said of it; it should shrink.
GROWTH = 10.0


class StepsBack(AnalysisTask):
    """The directions of queries: their gradients, summed on the way back through ``trainer.max_steps`` steps.

    Writes ``directions.safetensors`` for the method ``Directed``, [Q, ...] of every weight. Neither the batches nor any
    draw depends on which queries go together. Several ranks share the batches.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``, the folder of a pipeline, or a model spec.
        queries: A query store.
        query_ids: Ids of the queries; None is all.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices``, ``all``, or a regular
            expression; None is the adapter's where there is one, else ``matrices``.
        draws: Where the queries' losses are measured.
        region: A greyscale image; the brighter a place, the more of it is asked about. None is the whole query.
    """

    makes = ("directions.safetensors",)

    kind: ClassVar[str]
    """What its file is called in the header."""

    def __init__(
        self,
        checkpoint: InputPath,
        queries: InputPath,
        query_ids: list[int] | None = None,
        weights: str | None = None,
        draws: Draws = Draws(timesteps=50),
        region: InputPath | None = None,
    ) -> None:
        super().__init__(checkpoint)
        self.queries = queries
        self.query_ids = chosen_queries(Store(queries), query_ids)
        self.weights = self.model.chosen(weights, otherwise="matrices")
        self.selected = {name: weight.detach() for name, weight in self.model.select(self.weights).items()}
        self.draws = draws
        self.region = region
        self.timesteps = draw_timesteps(draws, self.model.process.levels)
        self._sizes = [weight.numel() for weight in self.selected.values()]
        self.adjoint: Tensor
        self.update: Tensor
        self.direction: Tensor
        self.first_norms: Tensor
        self.begun: Tensor
        rows = torch.zeros(len(self.query_ids), sum(self._sizes))
        self.hold(adjoint=rows, update=rows.clone(), direction=rows.clone())
        self.hold(first_norms=torch.zeros(len(rows)), begun=torch.tensor(False))
        self._chunk = 0

    def hold(self, **buffers: Tensor) -> None:
        """Keep what a run that goes on has to know, which is the same on all ranks."""
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.sum_over_ranks([name for name, _ in self.named_buffers(recurse=False)])

    @property
    def data(self) -> LatentDataModule:
        """Return the data of this run: what the model was trained on."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LatentDataModule):
            raise UserError(f"data: found {type(data).__name__}, expected LatentDataModule with the training images")
        return data

    def setup(self, stage: str) -> None:
        """Check the stores against the network, and that a step is a batch."""
        super().setup(stage)
        check_stores(Store(self.queries), Store(self.data.store), [self.model])
        expect_all_batches("trainer.limit_train_batches", self.trainer.limit_train_batches)
        if (found := self.trainer.accumulate_grad_batches) != 1:
            raise UserError(f"trainer.accumulate_grad_batches: found {found}, expected 1: every batch is a step")
        self.model = self.model.to(self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Take the queries' gradients, and what else the steps begin with, unless they are there."""
        self.selected = {name: weight.to(self.device) for name, weight in self.selected.items()}
        if bool(self.begun):
            return
        with progress("queries") as bar:
            self.adjoint.copy_(self._query_gradients(bar.track))
        if not bool(self.adjoint.isfinite().all()):
            raise UserError(
                f"queries {self.queries}: found a loss or gradient that is not finite, expected finite ones"
            )
        self.first_norms.copy_(self.adjoint.norm(dim=1))
        self.begin()
        self.begun.fill_(True)

    def begin(self) -> None:
        """Do what comes after the queries' gradients, and before the first step."""

    def _query_gradients(self, track: Callable[..., Any]) -> Tensor:
        """Return the gradients of all queries' mean losses over the draws, [Q, P]; ranks take turns."""
        store = Store(self.queries)
        queries = Context.of(store, self.query_ids, store, self.device).queries
        region = None
        if self.region is not None:
            region = read_region(self.region, queries["latent"].shape[-2:]).to(self.device)
        rows = torch.zeros_like(self.adjoint)
        share = range(self.trainer.global_rank, len(rows), self.trainer.world_size)
        for place in track(share, description="gradients of queries"):
            for indices in torch.arange(len(self.draws)).split(self.data.batch_size):  # type: ignore[no-untyped-call]
                inputs = self._query_inputs(queries, place, indices)
                loss = batch_loss(self.model, inputs, len(self.draws), region)
                rows[place] += self.flat(loss_gradient(loss, self.selected))
        return self.over_ranks(rows)

    def _query_inputs(self, queries: Batch, place: int, indices: Tensor) -> Inputs:
        """Return what the model is given of a query at the draws ``indices``."""
        like = next(iter(self.selected.values()))

        def repeated(value: Tensor) -> Tensor:
            return value[place, 0].expand(len(indices), *value.shape[2:])

        latent = repeated(queries["latent"]).to(like)
        ids = [of_query(self.query_ids[place])]
        noise = [batch_noise(self.draws, draw, latent.shape[1:], ids, 0, 0) for draw in indices.tolist()]
        conditions = {name: repeated(value) for name, value in self.model.conditions_of(queries).items()}
        return Inputs(latent, conditions, self.timesteps[indices].to(like.device), torch.cat(noise).to(like))

    def together(self, inputs: Inputs) -> int:
        """Return how many queries go together: as many as fit. What one takes is seen from a single sample."""
        if not self._chunk:
            conditions = {name: value[:1] for name, value in inputs.conditions.items()}
            single = Inputs(inputs.latent[:1], conditions, inputs.timesteps[:1], inputs.noise[:1])
            of_sample = held_by_backward(scaled_predictions(self.model, single, 1), self.selected, self.denoiser)
            each = of_sample * self.data.batch_size + 4 * self.adjoint[:1].nbytes
            free = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else QUERY_BYTES
            self._chunk = max(1, min(len(self.query_ids), free // each))
        return self._chunk

    def watch(self) -> tuple[int, float]:
        """Log the norms of adjoints, and return the query whose adjoint has grown most, and by how much.

        Raises:
            UserError: One is not finite any more.
        """
        norms = self.adjoint.norm(dim=1)
        growth = norms / self.first_norms.clamp(min=torch.finfo(norms.dtype).tiny)
        self.log_step("adjoint/norm", norms.mean())
        self.log_step("adjoint/growth", growth.max())
        query = self.query_ids[int(growth.argmax())]
        if not bool(norms.isfinite().all()):
            raise UserError(
                f"query {query}: its adjoint is not finite at step {self.global_step}, expected one that shrinks; "
                "lower model.learning_rate"
            )
        return query, float(growth.max())

    def samples(self, batch: Mapping[str, Tensor]) -> int:
        """Return how many samples the batch of all ranks has."""
        return int(self.over_ranks(torch.tensor(len(batch["latent"]), device=self.device)))

    def over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum over ranks."""
        total: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return total

    def flat(self, named: Mapping[str, Tensor], axes: int = 0) -> Tensor:
        """Return the parts by weight in rows, [..., P], behind so many axes."""
        return torch.cat([named[name].flatten(axes) for name in self.selected], dim=axes)

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Return rows [Q, P] by weight, [Q, *shape]."""
        parts = rows.split(self._sizes, dim=1)  # type: ignore[no-untyped-call]
        shaped = zip(self.selected.items(), parts, strict=True)
        return {name: part.reshape(len(rows), *weight.shape) for (name, weight), part in shaped}

    def configure_optimizers(self) -> None:
        """Optimise nothing."""
        return

    def on_fit_end(self) -> None:
        """Write ``directions.safetensors``."""
        if self.trainer.is_global_zero:
            tensors = {**self.named(self.direction), "query_id": torch.tensor(self.query_ids)}
            save_tensors(self.run / "directions.safetensors", self.kind, tensors, self.settings())

    def settings(self) -> dict[str, Any]:
        """Return what the directions depend on."""
        return {
            "query_ids": self.query_ids,
            "weights": self.weights,
            "steps": self.global_step,
            "batch_size": self.data.batch_size * self.trainer.world_size,
            "samples": samples_used(Store(self.data.store), self.data.positions),
            "data_seed": self.data.seed,
            "precision": self.trainer.precision,
            "draws": vars(self.draws),
            "digests": self.digests(),
        }

    def digests(self) -> dict[str, str]:
        """Return the digests of everything that this task was given."""
        files = {"store": self.data.store, "queries": self.queries}
        if self.region is not None:
            files["region"] = self.region
        return {**super().digests(), **{name: file_digest(path) for name, path in files.items()}}
