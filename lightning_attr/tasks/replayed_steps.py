"""Carry the gradients of queries backwards through the last steps of a training, as they were taken.

Shapes: Q queries, P numbers of all selected weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.console import warn
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.models import Inputs, load
from lightning_attr.noise import Draws
from lightning_attr.samples import as_trained
from lightning_attr.tasks.steps_back import GROWTH, StepsBack
from lightning_attr.trajectory import Step, steps_of
from lightning_attr.virtual_steps import batch_loss, gauss_newton, hessian, scaled_predictions, step_back


class ReplayedSteps(StepsBack):
    """The directions of queries by steps that were taken, see :class:`~lightning_attr.tasks.steps_back.StepsBack`.

    Each step has its own weights, rates and batch, and the moving average of the weights is gone back through as well.
    By the Hessian, and over all weights, directions are the derivative of that training, but for Adam's second moments
    and the factors of clipping, which are taken as they were. Adjoints may then grow without bounds, where a small
    change of one step changes all later ones: the run ends with an error where they do, for nothing is left of them.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``.
        queries: A query store.
        trajectory: The run of its training, with ``callbacks.Trajectory``: itself, or the same training once more.
            Whether its weights end where ``checkpoint`` is, is said in a warning and in the file.
        query_ids: Ids of the queries; None is all.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices``, ``all``, or a regular
            expression; None is the adapter's where there is one, else ``matrices``.
        products: By which matrix of a batch adjoints go through a step.
        draws: Where the queries' losses are measured.
        region: A greyscale image; the brighter a place, the more of it is asked about. None is the whole query.
    """

    kind = "replayed directions"

    def __init__(
        self,
        checkpoint: InputPath,
        queries: InputPath,
        trajectory: InputPath,
        query_ids: list[int] | None = None,
        weights: str | None = None,
        products: Literal["gauss_newton", "hessian"] = "gauss_newton",
        draws: Draws = Draws(timesteps=50),
        region: InputPath | None = None,
    ) -> None:
        super().__init__(checkpoint, queries, query_ids, weights, draws, region)
        self.trajectory = trajectory
        self.products = products
        self._last = steps_of(trajectory)
        step = Step.load(trajectory, self._last)
        if missing := sorted(self.selected.keys() - step.weights.keys()):
            raise UserError(f"model.trajectory {trajectory}: found no {missing[0]}, expected a training of all weights")
        self._training = step.training
        self.distance = self._distance(step.weights)
        if self.distance > 0:
            warn(
                f"model.trajectory {trajectory}: its weights end {self.distance:.2g} of their length away from "
                f"those of {checkpoint}, expected 0, as the same training has it on the same machine"
            )
        self.averaged: Tensor
        self.hold(averaged=torch.zeros_like(self.adjoint))

    @property
    def _end(self) -> Path:
        return Path(self.trajectory) / "checkpoints" / "last.ckpt"

    def _distance(self, trained: Mapping[str, Tensor]) -> float:
        """Return how far the trajectory's end is from the model, as a share of the length of its trained weights."""
        end, own = (dict(model.network.named_parameters()) for model in (load(self._end), self.model))
        if other := [
            name for name in trained if name not in own or name not in end or own[name].shape != end[name].shape
        ]:
            raise UserError(f"{self._end}: found another {other[0]} than {self.checkpoint}, expected the same model")
        squares = torch.stack([(end[name] - own[name]).double().square().sum() for name in trained])
        lengths = torch.stack([own[name].double().square().sum() for name in trained])
        return float((squares.sum() / lengths.sum()).sqrt())

    def setup(self, stage: str) -> None:
        """Check that the steps were kept, and that the batches are those of the training."""
        super().setup(stage)
        check_made_from(
            f"model.trajectory {self.trajectory}",
            self._training,
            "store",
            Store(self.data.store).digest,
            self.data.store,
        )
        first = self._last - self.trainer.max_steps + 1
        if self.trainer.max_steps < 1 or first < 1:
            raise UserError(f"trainer.max_steps: found {self.trainer.max_steps}, expected 1 to {self._last} steps")
        for number in range(first, self._last):
            Step.expect(self.trajectory, number)
        self._loader = self.data.train_dataloader()
        found, expected = self._loader.sampler.settings(), self._training["order"]
        if other := [name for name in expected if found.get(name) != expected[name]]:
            raise UserError(
                f"data: found {other[0]} {found.get(other[0])}, expected {expected[other[0]]} as in {self.trajectory}"
            )

    def begin(self) -> None:
        """Keep the gradients by the averaged weights, each of whose terms is a weight before a step or at the end."""
        self.averaged.copy_(self.adjoint)
        self.adjoint.zero_()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Go back through one step of all queries. The batch is not looked at: the step has its own."""
        step = Step.load(self.trajectory, self._last - self.global_step)
        self._go_to(step.weights)
        inputs, samples = self._inputs(step)
        chunk = self.together(inputs)
        rates = self.flat({name: step.rates[name].to(self.device) for name in self.selected})

        def products(updates: Tensor) -> Tensor:
            if self.products == "hessian":
                loss = batch_loss(self.model, inputs, samples)
                rows = hessian(loss, self.selected, self.named(updates), max(1, chunk // 2))  # it holds twice as much
            else:
                outputs = scaled_predictions(self.model, inputs, samples)
                rows = gauss_newton(outputs, self.selected, self.named(updates), chunk)
            return self.over_ranks(self.flat(rows, axes=1))

        self.adjoint.add_(self.averaged, alpha=1 - step.average)
        self.averaged.mul_(step.average)
        step_back(
            self.adjoint, self.update, self.direction, lambda rows: rows * rates, products,
            step.beta, step.clipped, step.kept,
        )  # fmt: skip
        query, growth = self.watch()
        if growth > GROWTH:
            raise UserError(
                f"query {query}: its adjoint has {growth:.0f} times its first norm {self.global_step + 1} steps back, "
                "so that its direction says nothing; go back through fewer (trainer.max_steps), or with "
                "model.products gauss_newton"
            )
        return 0 * self.unused

    def _go_to(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network the weights that it had."""
        own = dict(self.model.network.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
        self.selected = {name: own[name].detach() for name in self.selected}

    def _inputs(self, step: Step) -> tuple[Inputs, int]:
        """Return the batch of a step as training showed it, and how many samples it has over all ranks."""
        self._loader.sampler.set_epoch(step.epoch)
        key = list(self._loader.sampler)[step.batch]
        batch = {name: value.to(self.device) for name, value in self._loader.dataset[key].items()}
        seed, dropout = self._training["seed"], self._training["caption_dropout"]
        return as_trained(self.model, batch, seed, step.epoch, dropout), self.samples(batch)

    def settings(self) -> dict[str, Any]:
        """Return what the directions depend on."""
        return {**super().settings(), "products": self.products, "distance": self.distance}

    def digests(self) -> dict[str, str]:
        """Return the digests of everything that this task was given."""
        return super().digests() | {"trajectory": file_digest(str(self._end))}
