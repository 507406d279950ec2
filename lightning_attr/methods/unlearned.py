"""Methods that compare losses before and after a query was unlearned: loss deltas, and the skew of MUCS.

Shapes: Q queries, B samples, V views, D draws.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_attr.artifacts import load_tensors, read_header
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from, differs, digest_of
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.losses import sample_losses
from lightning_attr.methods.base import Batch, Context, Method, expect_counts
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
        return {**super().settings(), "changed": {path: file_digest(path) for path in self._paths()}}

    def _paths(self) -> list[str]:
        return [path for path in sorted(glob(self.changed)) if Path(path).is_file()]

    def prepare(self, context: Context) -> None:
        """Read the changed weights of every query, those of the context's model where there are some of several.

        Raises:
            UserError: A query has none or two, or they are of another task, model or query store.
        """
        self._model = context.trained()
        self._parameters = dict(self._model.network.named_parameters())
        by_query = self._find(context)
        self._changed = [self._read(by_query[query]) for query in context.queries["id"].tolist()]

    def _find(self, context: Context) -> dict[int, str]:
        """Return the file of every query."""
        queries, model = context.queries["id"].tolist(), context.trained()
        result: dict[int, str] = {}
        others: list[str] = []
        if not (paths := self._paths()):
            raise UserError(f"method.changed {self.changed}: found no file, expected one of every query")
        for path in paths:
            header = read_header(path)
            if header.kind != self.kind:
                raise UserError(f"{path}: found {header.kind}, expected {self.kind}")
            settings, query = header.settings, header.settings.get("query", -1)
            if query not in queries:
                continue
            if differs(made_from := digest_of(settings, "checkpoint"), model.digest):
                others.append(f"{path} was made from checkpoint {made_from}, not {model.path} ({model.digest})")
                continue
            if query in result:
                raise UserError(f"method.changed {self.changed}: found query {query} twice, the second time in {path}")
            check_made_from(path, settings, "queries", context.query_store.digest, context.query_store.path)
            result[query] = path
        if missing := [query for query in queries if query not in result]:
            found = f"method.changed {self.changed}: found none of query {missing[0]}, expected all {len(queries)}"
            raise UserError("; ".join([found, *others[:1]]))
        return result

    def _read(self, path: str) -> dict[str, Tensor]:
        """Return the changed weights in a file, on the CPU: all queries' may not fit the device."""
        weights, _ = load_tensors(path, self.kind)
        for name, value in weights.items():
            expected = tuple(self._parameters[name].shape) if name in self._parameters else "no such weight"
            if tuple(value.shape) != expected:
                raise UserError(f"{path}: found {name} {tuple(value.shape)}, expected {expected}")
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
