"""Methods that compare losses before and after a query was unlearned: loss deltas, and the skew of MUCS."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from glob import glob
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError
from lightning_attr.artifacts import file_digest, load_tensors
from lightning_attr.methods.base import Batch, Context, Method
from lightning_attr.methods.loss_deltas import sample_losses
from lightning_attr.noise import Draws


class Unlearned(Method):
    """Measures every sample under the original weights and under the changed weights of every query.

    Args:
        changed: The ``weights.safetensors`` of the queries, one file each; a pattern with ``*`` is fine.
        draws: Where losses are measured.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.
    """

    def __init__(self, changed: str, draws: Draws = Draws(), captions: int | None = 1, views: int | None = 1) -> None:
        self.changed = changed
        self.draws = draws
        self.captions = captions
        self.views = views

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the digests of the changed weights in the place of the pattern."""
        return {**super().settings(), "changed": {path: file_digest(path) for path in sorted(glob(self.changed))}}

    def prepare(self, context: Context) -> None:
        """Read the changed weights of every query.

        Raises:
            UserError: A query has none or two, or they are of another model.
        """
        self._model = context.trained()
        self._parameters = dict(self._model.denoiser.named_parameters())
        by_query = self._read()
        queries = context.queries["id"].tolist()
        if missing := [query for query in queries if query not in by_query]:
            raise UserError(
                f"method.changed {self.changed}: found none of query {missing[0]}, expected all {len(queries)}"
            )
        self._changed = [
            {name: value.to(context.device) for name, value in by_query[query].items()} for query in queries
        ]

    def _read(self) -> dict[int, dict[str, Tensor]]:
        """Return the changed weights of every query that there is a file of."""
        result: dict[int, dict[str, Tensor]] = {}
        for path in sorted(glob(self.changed)):
            weights, settings = load_tensors(path)
            if (query := settings.get("query")) is None:
                raise UserError(f"{path}: found no query, expected the changed weights of one")
            if query in result:
                raise UserError(f"method.changed {self.changed}: found query {query} twice, the second time in {path}")
            self._check(path, weights)
            result[query] = weights
        return result

    def _check(self, path: str, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            expected = tuple(self._parameters[name].shape) if name in self._parameters else "no such weight"
            if tuple(value.shape) != expected:
                raise UserError(f"{path}: found {name} {tuple(value.shape)}, expected {expected}")

    @torch.no_grad()
    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        before = self._losses(batch)
        columns = []
        for weights in self._changed:
            original = {name: self._parameters[name].clone() for name in weights}
            self._assign(weights)
            try:
                columns.append(self.compare(before, self._losses(batch)))
            finally:
                self._assign(original)
        return torch.stack(columns, dim=1)

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the scores [B] of losses [B, V, D] before and after."""

    def _losses(self, batch: Batch) -> Tensor:
        return sample_losses(self._model.denoiser, self._model.scheduler, batch, self.draws, self.views, self.captions)

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self._parameters[name].copy_(value)
