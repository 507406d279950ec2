"""Carry the gradients of queries backwards through virtual training steps: a ``fit`` without an optimizer.

Shapes: Q queries, P numbers of all selected weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_attr.artifacts import tensors_digest
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.console import progress, warn
from lightning_attr.curvature import Damping, curvature_digest
from lightning_attr.errors import UserError, expect_within
from lightning_attr.noise import Draws
from lightning_attr.precision import outside_autocast
from lightning_attr.samples import as_trained
from lightning_attr.second_moments import EPSILON, adam_diagonal, adam_of
from lightning_attr.tasks.steps_back import GROWTH, StepsBack
from lightning_attr.virtual_steps import (
    batch_loss,
    gauss_newton,
    loss_gradient,
    scaled_predictions,
    step_back,
)

#: The batches from which second moments are estimated, and the number of the first epoch that they are of: no step's.
BATCHES, EPOCH = 100, 2**20


class VirtualSteps(StepsBack):
    """The directions of queries by virtual steps, see :class:`~lightning_attr.tasks.steps_back.StepsBack`.

    A virtual step is one that training would take from the model's weights, with a batch as training draws it: of
    ``data``, at random timesteps and noises, some captions dropped. Its Hessian is replaced by the Gauss-Newton matrix;
    see :mod:`lightning_attr.virtual_steps`. Nothing is needed but the model and its images.

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

    kind = "directions"

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
        super().__init__(checkpoint, queries, query_ids, weights, draws, region)
        expect_within("model.learning_rate", learning_rate, 0)
        expect_within("model.beta", beta, 0, 1)
        expect_within("model.caption_dropout", caption_dropout, 0, 1)
        self.beta = beta
        self.damping = damping
        self.caption_dropout = caption_dropout
        self.seed = seed
        self.curvature_path = curvature
        self.curvature = None if curvature is None else self.fitted_curvature(curvature, self.selected, damping)
        self.diagonal: Tensor
        self.hold(diagonal=torch.zeros(self.adjoint.shape[1]))
        self._choose_preconditioner(preconditioner, learning_rate)
        self._warned = False

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

    def begin(self) -> None:
        """Estimate the second moments where no checkpoint has them."""
        if self.preconditioner == "gradients":
            with progress("batches") as bar:
                self.diagonal.copy_(adam_diagonal(self._second_moments(bar.track), self.epsilon))

    def _second_moments(self, track: Callable[..., Any]) -> Tensor:
        """Return the mean of the squares of batches' gradients, [P]."""
        total = torch.zeros_like(self.diagonal, dtype=torch.float64)
        for epoch, batch in track(islice(self._batches(), BATCHES), total=BATCHES, description="second moments"):
            inputs = as_trained(self.model, batch, self.seed, epoch, self.caption_dropout)
            loss = batch_loss(self.model, inputs, self.samples(batch))
            total += self.over_ranks(self.flat(loss_gradient(loss, self.selected))).double().square()
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
        outputs, chunk = scaled_predictions(self.model, inputs, self.samples(batch)), self.together(inputs)

        def products(updates: Tensor) -> Tensor:
            rows = gauss_newton(outputs, self.selected, self.named(updates), chunk)
            return self.over_ranks(self.flat(rows, axes=1))

        step_back(self.adjoint, self.update, self.direction, self._preconditioned, products, self.beta)
        query, growth = self.watch()
        if growth > GROWTH and not self._warned:
            self._warned = True
            warn(
                f"query {query}: its adjoint has {growth:.0f} times its first norm at step {self.global_step}, "
                "expected one that shrinks; lower model.learning_rate"
            )
        return 0 * self.unused

    @outside_autocast
    def _preconditioned(self, rows: Tensor) -> Tensor:
        if self.curvature is None:
            return rows * (self.learning_rate * self.diagonal)
        return self.flat(self.curvature.inverse(self.named(rows), self.damping), axes=1) * self.learning_rate

    def settings(self) -> dict[str, Any]:
        """Return what the directions depend on."""
        names = ("learning_rate", "beta", "preconditioner", "caption_dropout", "seed")
        own = {name: getattr(self, name) for name in names}
        return {**super().settings(), **own, "damping": vars(self.damping)}

    def digests(self) -> dict[str, str]:
        """Return the digests of everything that this task was given."""
        if self.curvature_path is not None:
            return super().digests() | {"curvature": curvature_digest(self.curvature_path)}
        return super().digests() | {"preconditioner": tensors_digest({"diagonal": self.diagonal})}
