"""Small methods that show how an attribution runs: one takes gradients of a model, others score as they are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.methods import Method
from lightning_attr.methods.base import Batch, Context


class TextGradient(Method):
    """Gradients of the squared prediction by the text states, against those of the queries, less their mean.

    The mean is over the samples, so that ``score`` goes through the chunks twice.
    """

    def prepare(self, context: Context) -> None:
        self._model = context.trained()
        self._queries = self._gradients(context.queries)

    def measure(self, batch: Batch) -> Tensor:
        return self._gradients(batch)

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        mean = sum(rows.sum(0) for rows in chunks) / sum(len(rows) for rows in chunks)
        for rows in chunks:
            yield self._queries @ (rows - mean).T

    @torch.enable_grad()
    def _gradients(self, batch: Batch) -> Tensor:
        text = batch["text"][:, 0].float().requires_grad_()
        timesteps = torch.full((len(text),), 500)
        prediction = self._model.predict(batch["latent"][:, 0].float(), timesteps, {"text": text})
        return torch.autograd.grad(prediction.square().sum(), text)[0].flatten(1)


class ByTens(Method):
    """Scores with many ties: the tens of a sample's id, and minus those for queries with odd ids.

    Args:
        nan: The id of a sample whose score is not a number.
        reads: A file that changes nothing.
    """

    def __init__(self, nan: int | None = None, reads: InputPath | None = None) -> None:
        self.nan = nan
        self.reads = reads

    def prepare(self, context: Context) -> None:
        self._sign = 1 - 2 * (context.queries["id"] % 2)

    def measure(self, batch: Batch) -> Tensor:
        tens = (batch["id"] // 10).float()
        tens[batch["id"] == self.nan] = torch.nan
        return tens[:, None] * self._sign


class InTwoPasses(ByTens):
    """The tens in one pass, and the ones in the next."""

    @property
    def passes(self) -> int:
        return 2

    def enter(self, index: int) -> None:
        self._index = index

    def measure(self, batch: Batch) -> Tensor:
        return super().measure(batch) if self._index == 0 else (batch["id"] % 10).float()[:, None]

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        for rows in chunks:
            yield (10 * rows[:, :-1] + rows[:, -1:]).T
