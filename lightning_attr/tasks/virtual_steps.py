"""Carry the gradients of queries backwards through virtual training steps: a ``fit`` without an optimizer.

Shapes: Q queries, P numbers of all selected weights, D draws, C x H x W a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules import LatentDataModule
from datamodules.store import Store
from lightning_attr.artifacts import save_tensors, tensors_digest
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.console import progress, warn
from lightning_attr.curvature import Damping, curvature_digest
from lightning_attr.digests import file_digest, samples_used
from lightning_attr.errors import UserError, expect_within
from lightning_attr.methods.attribute import check_stores, chosen_queries
from lightning_attr.methods.base import Batch, Context
from lightning_attr.models import Inputs
from lightning_attr.noise import Draws, batch_noise, draw_timesteps, of_query
from lightning_attr.precision import outside_autocast
from lightning_attr.region import read_region
from lightning_attr.runs.whole import expect_all_batches
from lightning_attr.samples import as_trained
from lightning_attr.second_moments import EPSILON, adam_diagonal, adam_of
from lightning_attr.tasks.analysis import AnalysisTask
from lightning_attr.virtual_steps import (
    Outputs,
    gauss_newton,
    held_by_backward,
    loss_gradient,
    scaled_predictions,
    step_back,
)

#: The batches from which second moments are estimated, and the number of the first epoch that they are of: no step's.
BATCHES, EPOCH = 100, 2**20

#: Bytes that the queries take which go together; on a GPU it is half of what is free.
QUERY_BYTES = 2**30

#: By how much the norm of an adjoint may grow before there is a warning; it should shrink.
GROWTH = 10.0


class VirtualSteps(AnalysisTask):
    """The directions of queries: their gradients, summed on the way back through ``trainer.max_steps`` virtual steps.

    A virtual step is one that training would take from the model's weights, with a batch as training draws it: of
    ``data``, at random timesteps and noises, some captions dropped. Its Hessian is replaced by the Gauss-Newton matrix;
    see :mod:`lightning_attr.virtual_steps`. Nothing is needed but the model and its images. Writes
    ``directions.safetensors`` for the method ``Directed``, [Q, ...] of every weight.

    Neither the batches nor any draw depends on which queries go together. Several ranks share the batches.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``, the folder of a pipeline, or a model spec.
        queries: A query store.
        query_ids: Ids of the queries; None is all.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices``, ``all``, or a regular
            expression; None is the adapter's where there is one, else ``matrices``.
        learning_rate: Of training; None is that of the checkpoint's last step.
        beta: Share of the old average of gradients in the new one, in a step: Adam's first.
        preconditioner: What Adam divides a step by: the second moments of the checkpoint's ``optimizer``, or those that
            batches' ``gradients`` have at the weights. None is the optimizer's where the checkpoint has them.
        curvature: A curvature file that preconditions the steps instead; the learning rate is then one of natural
            gradients.
        damping: Added to the curvature before it is inverted.
        draws: Where the queries' losses are measured.
        region: A greyscale image; the brighter a place, the more of it is asked about. None is the whole query.
        caption_dropout: Of training.
        seed: Of the batches' timesteps, noises and dropped captions.
    """

    makes = ("directions.safetensors",)

    def __init__(
        self,
        checkpoint: InputPath,
        queries: InputPath,
        query_ids: list[int] | None = None,
        weights: str | None = None,
        learning_rate: float | None = None,
        beta: float = 0.9,
        preconditioner: Literal["optimizer", "gradients"] | None = None,
        curvature: InputPath | None = None,
        damping: Damping = Damping(0.1, "mean"),
        draws: Draws = Draws(timesteps=50),
        region: InputPath | None = None,
        caption_dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(checkpoint)
        expect_within("model.learning_rate", learning_rate, 0)
        expect_within("model.beta", beta, 0, 1)
        expect_within("model.caption_dropout", caption_dropout, 0, 1)
        self.queries = queries
        self.query_ids = chosen_queries(Store(queries), query_ids)
        self.weights = self.model.chosen(weights, otherwise="matrices")
        self.selected = {name: weight.detach() for name, weight in self.model.select(self.weights).items()}
        self.beta = beta
        self.damping = damping
        self.draws = draws
        self.region = region
        self.caption_dropout = caption_dropout
        self.seed = seed
        self.curvature_path = curvature
        self.curvature = None if curvature is None else self.fitted_curvature(curvature, self.selected, damping)
        self.timesteps = draw_timesteps(draws, self.model.process.levels)
        self._sizes = [weight.numel() for weight in self.selected.values()]
        rows = torch.zeros(len(self.query_ids), sum(self._sizes))
        self.adjoint: Tensor
        self.momentum: Tensor
        self.direction: Tensor
        self.first_norms: Tensor
        self.diagonal: Tensor
        self.begun: Tensor
        own = {name: rows.clone() for name in ("adjoint", "momentum", "direction")}
        own |= {"first_norms": torch.zeros(len(rows)), "diagonal": torch.zeros(rows.shape[1])}
        own |= {"begun": torch.tensor(False)}
        for name, buffer in own.items():
            self.register_buffer(name, buffer)
        self.sum_over_ranks(list(own))
        self._choose_preconditioner(preconditioner, learning_rate)
        self._warned = False
        self._chunk = 0

    def _choose_preconditioner(self, asked: Literal["optimizer", "gradients"] | None, rate: float | None) -> None:
        if asked is not None and self.curvature is not None:
            raise UserError(f"model.preconditioner: found {asked} with a curvature, expected one of both")
        adam = adam_of(self.model)
        has_all = adam is not None and self.selected.keys() <= adam.second_moments.keys()
        if asked == "optimizer" and not has_all:
            raise UserError(
                f"model.preconditioner: found optimizer, but {self.checkpoint} keeps no second moments of all "
                f"{self.weights!r} weights; expected null, or gradients"
            )
        self.preconditioner = "curvature" if self.curvature else asked or ("optimizer" if has_all else "gradients")
        self.epsilon = adam.epsilon if adam is not None else EPSILON
        if adam is not None and self.preconditioner == "optimizer":
            moments = [adam.second_moments[name].flatten() for name in self.selected]
            self.diagonal.copy_(adam_diagonal(torch.cat(moments), self.epsilon))
        if rate is None and adam is not None and self.curvature is None:
            rate = adam.learning_rate
        if rate is None:
            says = "natural gradients have none that is usual" if self.curvature else f"{self.checkpoint} says none"
            raise UserError(f"model.learning_rate: found none, and {says}; expected a number")
        self.learning_rate = rate

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
        """Take the queries' gradients, and the second moments where no checkpoint has them, unless they are there."""
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
        if self.preconditioner == "gradients":
            with progress("batches") as bar:
                self.diagonal.copy_(adam_diagonal(self._second_moments(bar.track), self.epsilon))
        self.begun.fill_(True)

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
                rows[place] += self._flat(loss_gradient(self.model, self.selected, inputs, len(self.draws), region))
        return self._over_ranks(rows)

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

    def _second_moments(self, track: Callable[..., Any]) -> Tensor:
        """Return the mean of the squares of batches' gradients, [P]."""
        total = torch.zeros_like(self.diagonal, dtype=torch.float64)
        for epoch, batch in track(islice(self._batches(), BATCHES), total=BATCHES, description="second moments"):
            inputs = as_trained(self.model, batch, self.seed, epoch, self.caption_dropout)
            share = self._flat(loss_gradient(self.model, self.selected, inputs, self._samples(batch)))
            total += self._over_ranks(share).double().square()
        return (total / BATCHES).to(self.diagonal)

    def _batches(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield batches as training draws them, with their epochs, which are those of no step."""
        loader = self.data.train_dataloader()
        for epoch in count(EPOCH):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                yield epoch, {name: value.to(self.device) for name, value in batch.items()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Go back through one step of all queries. There is no optimizer; the loss returned is zero."""
        inputs = as_trained(self.model, batch, self.seed, self.current_epoch, self.caption_dropout)
        outputs = scaled_predictions(self.model, inputs, self._samples(batch))
        self._chunk = self._chunk or self._queries_together(inputs)
        step_back(
            self.adjoint, self.momentum, self.direction,
            self._preconditioned, lambda updates: self._products(outputs, updates), self.beta,
        )  # fmt: skip
        self._watch()
        return 0 * self.unused

    def _products(self, outputs: Outputs, updates: Tensor) -> Tensor:
        """Return the Gauss-Newton matrix of the batch of all ranks times updates, [Q, P]."""
        rows = gauss_newton(outputs, self.selected, self._named(updates), self._chunk)
        return self._over_ranks(self._flat(rows, axes=1))

    @outside_autocast
    def _preconditioned(self, rows: Tensor) -> Tensor:
        if self.curvature is None:
            return rows * (self.learning_rate * self.diagonal)
        return self._flat(self.curvature.inverse(self._named(rows), self.damping), axes=1) * self.learning_rate

    def _queries_together(self, inputs: Inputs) -> int:
        """Return how many queries go together: as many as fit. What one takes is seen from a single sample."""
        conditions = {name: value[:1] for name, value in inputs.conditions.items()}
        single = Inputs(inputs.latent[:1], conditions, inputs.timesteps[:1], inputs.noise[:1])
        of_sample = held_by_backward(scaled_predictions(self.model, single, 1), self.selected, self.denoiser)
        each = of_sample * self.data.batch_size + 4 * self.diagonal.nbytes
        free = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else QUERY_BYTES
        return max(1, min(len(self.query_ids), free // each))

    def _watch(self) -> None:
        """Log the norms of adjoints, and warn where one grows.

        Raises:
            UserError: One is not finite any more.
        """
        norms = self.adjoint.norm(dim=1)
        growth = norms / self.first_norms.clamp(min=torch.finfo(norms.dtype).tiny)
        self.log("adjoint/norm", norms.mean(), prog_bar=True)
        self.log("adjoint/growth", growth.max())
        query, largest = self.query_ids[int(growth.argmax())], float(growth.max())
        if not bool(norms.isfinite().all()):
            raise UserError(
                f"query {query}: its adjoint is not finite at step {self.global_step}, expected one that shrinks; "
                "lower model.learning_rate"
            )
        if largest > GROWTH and not self._warned:
            self._warned = True
            warn(
                f"query {query}: its adjoint has {largest:.0f} times its first norm at step {self.global_step}, "
                "expected one that shrinks; lower model.learning_rate"
            )

    def _samples(self, batch: dict[str, Tensor]) -> int:
        """Return how many samples the batch of all ranks has."""
        return int(self._over_ranks(torch.tensor(len(batch["latent"]), device=self.device)))

    def _over_ranks(self, value: Tensor) -> Tensor:
        total: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return total

    def _flat(self, named: Mapping[str, Tensor], axes: int = 0) -> Tensor:
        """Return the parts by weight in rows, [..., P], behind so many axes."""
        return torch.cat([named[name].flatten(axes) for name in self.selected], dim=axes)

    def _named(self, rows: Tensor) -> dict[str, Tensor]:
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
            tensors = {**self._named(self.direction), "query_id": torch.tensor(self.query_ids)}
            save_tensors(self.run / "directions.safetensors", "directions", tensors, self.settings())

    def settings(self) -> dict[str, Any]:
        """Return what the directions depend on."""
        names = ("query_ids", "weights", "learning_rate", "beta", "preconditioner", "caption_dropout", "seed")
        return {
            **{name: getattr(self, name) for name in names},
            "steps": self.global_step,
            "batch_size": self.data.batch_size * self.trainer.world_size,
            "samples": samples_used(Store(self.data.store), self.data.positions),
            "data_seed": self.data.seed,
            "precision": self.trainer.precision,
            "damping": vars(self.damping),
            "draws": vars(self.draws),
            "digests": self.digests(),
        }

    def digests(self) -> dict[str, str]:
        """Return the digests of everything that this task was given."""
        files = {"store": self.data.store, "queries": self.queries}
        digests = {**super().digests(), **{name: file_digest(path) for name, path in files.items()}}
        if self.region is not None:
            digests["region"] = file_digest(self.region)
        if self.curvature_path is not None:
            return digests | {"curvature": curvature_digest(self.curvature_path)}
        return digests | {"preconditioner": tensors_digest({"diagonal": self.diagonal})}
