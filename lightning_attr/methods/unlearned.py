"""Methods that compare losses before and after a query was unlearned: loss deltas, and the skew of MUCS.

Shapes: Q queries, B samples, V views, D draws.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.digests import file_digest
from lightning_attr.losses import sample_losses
from lightning_attr.methods.base import Batch, Context, Method, expect_counts
from lightning_attr.methods.files_of_queries import check_shapes, files_of_queries, matching
from lightning_attr.noise import Draws
from lightning_attr.precision import outside_autocast


class Unlearned(Method):
    """Measures every sample under the original weights and under the changed weights of every query.

    Attributes:
        kind: What the files of changed weights hold.

    Args:
        changed: The ``weights.safetensors`` of the queries, one file each; a pattern with ``*`` is fine, and may match
            files of several checkpoints.
        draws: Where losses are measured.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.
    """

    kind: ClassVar[str]

    def __init__(
        self, changed: InputPath, draws: Draws = Draws(), captions: int | None = 1, views: int | None = 1
    ) -> None:
        expect_counts("method", captions=captions, views=views)
        self.changed = changed
        self.draws = draws
        self.captions = captions
        self.views = views

    @property
    def is_influence(self) -> bool:
        """Return true: what is forgotten of a sample, each of its showings had taught."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the digests of the changed weights in the place of the pattern."""
        return {**super().settings(), "changed": {path: file_digest(path) for path in matching(self.changed)}}

    def prepare(self, context: Context) -> None:
        """Read the changed weights of every query, those of the context's model where there are some of several.

        Raises:
            UserError: A query has none or two, or they are of another task, model or query store.
        """
        self._model = context.trained()
        self._parameters = dict(self._model.network.named_parameters())
        by_query = files_of_queries("method.changed", self.changed, [self.kind], context)
        self._changed = [self._read(by_query[query]) for query in context.queries["id"].tolist()]

    def _read(self, path: str) -> dict[str, Tensor]:
        """Return the changed weights in a file, on the CPU: all queries' may not fit the device."""
        weights, _ = load_tensors(path, self.kind)
        check_shapes(path, {name: tuple(value.shape) for name, value in weights.items()}, self._parameters)
        return weights

    # In low precision a small change of the weights would be rounded away.
    @outside_autocast
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
        return sample_losses(self._model, batch, self.draws, self.views, self.captions)

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self._parameters[name].copy_(value)
