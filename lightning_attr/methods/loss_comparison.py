"""Losses of every sample under the model's weights, and under others for each query.

Shapes: Q queries, B samples, V views, D draws.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_attr.losses import sample_losses
from lightning_attr.methods.base import Batch, Context, Method, expect_counts
from lightning_attr.noise import Draws
from lightning_attr.precision import outside_autocast


class LossComparison(Method):
    """Measures every sample under the original weights, and under the changed weights of every query.

    Args:
        draws: Where losses are measured.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.
    """

    def __init__(self, draws: Draws = Draws(), captions: int | None = 1, views: int | None = 1) -> None:
        expect_counts("method", captions=captions, views=views)
        self.draws = draws
        self.captions = captions
        self.views = views

    @property
    def is_influence(self) -> bool:
        """Return true: what is forgotten of a sample, each of its showings had taught."""
        return True

    def prepare(self, context: Context) -> None:
        """Take the model and its weights."""
        self._model = context.trained()
        self._parameters = dict(self._model.network.named_parameters())
        self._count = len(context.queries["id"])

    # In low precision a small change of the weights would be rounded away.
    @outside_autocast
    @torch.no_grad()
    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        before = self._losses(batch)
        columns = []
        for place in range(self._count):
            with self.changed_to(self.weights_of(place)):
                columns.append(self.compare(before, self._losses(batch)))
        return torch.stack(columns, dim=1)

    @abstractmethod
    def weights_of(self, place: int) -> Mapping[str, Tensor]:
        """Return the changed weights of the query at a place in the run's queries."""

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the scores [B] of losses [B, V, D] before and after."""

    @contextmanager
    def changed_to(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Give the network other weights for a while."""
        original = {name: self._parameters[name].clone() for name in weights}
        self._assign(weights)
        try:
            yield
        finally:
            self._assign(original)

    def _losses(self, batch: Batch) -> Tensor:
        return sample_losses(self._model, batch, self.draws, self.views, self.captions)

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self._parameters[name].copy_(value)
