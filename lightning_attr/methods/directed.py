"""Directions: how the weights would have to move for each query, against the gradients of the samples.

Shapes: Q queries, B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output, sample_gradients
from lightning_attr.methods.base import Batch, Context, Method, expect_counts
from lightning_attr.methods.files_of_queries import check_shapes, files_of_queries, kind_of, matching
from lightning_attr.methods.gradient_method import products

#: What files that hold or imply directions are called, and the method that a pass with them is.
KINDS: Mapping[str, str] = {
    "directions": "virtual-steps",
    "replayed directions": "replayed-steps",
    "unlearned weights": "unlearning-direction",
    "mirrored weights": "mucs-direction",
}


#: Of these, those whose files hold changed weights: their difference from the model's is the direction.
CHANGED = ("unlearned weights", "mirrored weights")


class Directed(Method):
    """The product of a query's direction and a sample's gradient: one pass for all queries, whatever made directions.

    A direction is a change of the weights that raises the query's loss. Those of ``VirtualSteps`` and
    ``ReplayedSteps`` lie in one file, for any number of queries. Of changed weights, by ``Unlearning`` or
    ``MirroredUnlearning``, it is what they differ from the model's by: the scores are then the loss deltas to first
    order, without a loss sweep for each query.

    Args:
        directions: ``directions.safetensors``, or the ``weights.safetensors`` of changed weights; a pattern with ``*``
            is fine, and may match files of several checkpoints.
        output: What of the samples is differentiated, and at which draws.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.

    Raises:
        UserError: There is no such file, or one holds neither, or another than the first.
    """

    def __init__(
        self, directions: InputPath, output: Output = Output(), captions: int | None = 1, views: int | None = 1
    ) -> None:
        expect_counts("method", captions=captions, views=views)
        self.directions = directions
        self.output = output
        self.captions = captions
        self.views = views
        if not (paths := matching(directions)):
            raise UserError(f"method.directions {directions}: found no file, expected one of every query")
        self._kind = kind_of(paths[0], KINDS)

    @property
    def name(self) -> str:
        """Return what made the directions, such as ``virtual-steps`` or ``mucs-direction``."""
        return f"{KINDS[self._kind]}{'-normalised' if self.output.normalised else ''}"

    @property
    def is_influence(self) -> bool:
        """Return true: products with a sample's gradient add up over its showings."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the digests of the files in the place of the pattern."""
        return {**super().settings(), "directions": {path: file_digest(path) for path in matching(self.directions)}}

    def prepare(self, context: Context) -> None:
        """Read the direction of every query.

        Raises:
            UserError: A query has none or two, or they are of another model, store, query store, or of other weights.
        """
        self._model = context.trained()
        parameters = dict(self._model.network.named_parameters())
        by_query = files_of_queries("method.directions", self.directions, [self._kind], context)
        queries = context.queries["id"].tolist()
        rows: dict[str, Tensor] = {}
        for path in dict.fromkeys(by_query.values()):
            own = [place for place, query in enumerate(queries) if by_query[query] == path]
            found, settings = self._read(path, parameters, [queries[place] for place in own])
            check_made_from(path, settings, "store", context.store.digest, context.store.path)
            rows = rows or {name: value.new_zeros(len(queries), *value.shape[1:]) for name, value in found.items()}
            if other := sorted(rows.keys() ^ found.keys()):
                raise UserError(f"{path}: found directions of other weights than of query {queries[0]}: {other[0]}")
            for name, value in found.items():
                rows[name][own] = value
        self._selected = {name: parameters[name] for name in rows}
        self._rows = {name: value.to(context.device) for name, value in rows.items()}

    def _read(
        self, path: str, parameters: Mapping[str, Tensor], queries: list[int]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the directions of queries that a file holds or implies, [Q, *shape] by weight, and its settings."""
        tensors, settings = load_tensors(path, self._kind)
        if self._kind in CHANGED:
            check_shapes(path, {name: tuple(value.shape) for name, value in tensors.items()}, parameters)
            changes = {name: value - parameters[name].detach().cpu() for name, value in tensors.items()}
            return {name: change[None] for name, change in changes.items()}, settings
        held = tensors.pop("query_id", torch.empty(0)).tolist()
        if held != settings.get("query_ids"):
            raise UserError(f"{path}: found directions of queries {held}, expected {settings.get('query_ids')}")
        check_shapes(path, {name: tuple(value.shape[1:]) for name, value in tensors.items()}, parameters)
        places = [held.index(query) for query in queries]
        return {name: value[places] for name, value in tensors.items()}, settings

    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        gradients = sample_gradients(self._model, self._selected, batch, self.output, self.views, self.captions)
        return products(self._rows, gradients)
