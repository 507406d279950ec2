"""Directions: how the weights would have to move for each query to raise its loss.

Shapes: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.errors import UserError
from lightning_attr.methods.base import Context
from lightning_attr.methods.files_of_queries import check_shapes, files_of_queries, kind_of, matching

#: What files that hold or imply directions are called, and the method whose pass is the product with them.
MADE_BY: Mapping[str, str] = {
    "directions": "virtual-steps",
    "replayed directions": "replayed-steps",
    "unlearned weights": "unlearning-direction",
    "mirrored weights": "mucs-direction",
}

#: Of these, those whose files hold changed weights: their difference from the model's is the direction.
CHANGED = ("unlearned weights", "mirrored weights")


def kind_of_directions(pattern: str) -> str:
    """Return what the first of the files holds that a path, or a pattern with ``*``, names.

    Raises:
        UserError: There is no such file, or it holds no directions.
    """
    if not (paths := matching(pattern)):
        raise UserError(f"method.directions {pattern}: found no file, expected one of every query")
    return kind_of(paths[0], MADE_BY)


def read_directions(pattern: str, kind: str, parameters: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
    """Return the directions of the context's queries on the CPU, [Q, *shape] by weight.

    Raises:
        UserError: A query has none or two, or they are of another model, store, query store, or of other weights.
    """
    by_query = files_of_queries("method.directions", pattern, [kind], context)
    queries = context.queries["id"].tolist()
    rows: dict[str, Tensor] = {}
    for path in dict.fromkeys(by_query.values()):
        own = [place for place, query in enumerate(queries) if by_query[query] == path]
        found, settings = _read(path, kind, parameters, [queries[place] for place in own])
        check_made_from(path, settings, "store", context.store.digest, context.store.path)
        rows = rows or {name: value.new_zeros(len(queries), *value.shape[1:]) for name, value in found.items()}
        if other := sorted(rows.keys() ^ found.keys()):
            raise UserError(f"{path}: found directions of other weights than of query {queries[0]}: {other[0]}")
        for name, value in found.items():
            rows[name][own] = value
    return rows


def _read(
    path: str, kind: str, parameters: Mapping[str, Tensor], queries: list[int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the directions of queries that a file holds or implies, [Q, *shape] by weight, and its settings."""
    tensors, settings = load_tensors(path, kind)
    if kind in CHANGED:
        check_shapes(path, {name: tuple(value.shape) for name, value in tensors.items()}, parameters)
        changes = {name: value - parameters[name].detach().cpu() for name, value in tensors.items()}
        return {name: change[None] for name, change in changes.items()}, settings
    held = tensors.pop("query_id", torch.empty(0)).tolist()
    if held != settings.get("query_ids"):
        raise UserError(f"{path}: found directions of queries {held}, expected {settings.get('query_ids')}")
    check_shapes(path, {name: tuple(value.shape[1:]) for name, value in tensors.items()}, parameters)
    places = [held.index(query) for query in queries]
    return {name: value[places] for name, value in tensors.items()}, settings
