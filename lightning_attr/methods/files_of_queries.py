"""Files that were made of queries, one or several in each: which of them are those of a run's queries."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_attr.artifacts import read_header
from lightning_attr.artifacts.provenance import check_made_from, differs, digest_of
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.methods.base import Context


def matching(pattern: str) -> list[str]:
    """Return the files that a path, or a pattern with ``*``, names."""
    return [path for path in sorted(glob(pattern)) if Path(path).is_file()]


def digests(pattern: str) -> dict[str, str]:
    """Return the digests of the files that a pattern names, which settings have in its place."""
    return {path: file_digest(path) for path in matching(pattern)}


def kind_of(path: str, kinds: Collection[str]) -> str:
    """Return what a file holds.

    Raises:
        UserError: It is none of ``kinds``.
    """
    if (kind := read_header(path).kind) not in kinds:
        raise UserError(f"{path}: found {kind}, expected {' or '.join(kinds)}")
    return kind


def files_of_queries(key: str, pattern: str, kinds: Collection[str], context: Context) -> dict[int, str]:
    """Return the file of every query, of those that were made from the context's model.

    Args:
        key: The setting that names the files, for messages.
        pattern: As of :func:`matching`; it may match files of other queries and other models.
        kinds: What the files may hold.
        context: The run's queries, their store, and the model.

    Raises:
        UserError: A query has none or two, or one is of another kind or query store.
    """
    queries, model = context.queries["id"].tolist(), context.trained()
    result: dict[int, str] = {}
    others: list[str] = []
    if not (paths := matching(pattern)):
        raise UserError(f"{key} {pattern}: found no file, expected one of every query")
    for path in paths:
        kind_of(path, kinds)
        settings = read_header(path).settings
        if not (own := [query for query in queries_in(settings) if query in queries]):
            continue
        if differs(made_from := digest_of(settings, "checkpoint"), model.digest):
            others.append(f"{path} was made from checkpoint {made_from}, not {model.path} ({model.digest})")
            continue
        if twice := [query for query in own if query in result]:
            raise UserError(f"{key} {pattern}: found query {twice[0]} twice, the second time in {path}")
        check_made_from(path, settings, "queries", context.query_store.digest, context.query_store.path)
        result |= dict.fromkeys(own, path)
    if missing := [query for query in queries if query not in result]:
        found = f"{key} {pattern}: found none of query {missing[0]}, expected all {len(queries)}"
        raise UserError("; ".join([found, *others[:1]]))
    return result


def queries_in(settings: Any) -> list[int]:
    """Return the ids of the queries that a file's settings say it is of."""
    several = settings.get("query_ids", [settings.get("query", -1)])
    return [query for query in several if isinstance(query, int)] if isinstance(several, list) else []


def check_shapes(path: str, found: Mapping[str, tuple[int, ...]], parameters: Mapping[str, Tensor]) -> None:
    """Check that what a file has of weights has their shapes.

    Raises:
        UserError: A weight has another shape, or there is no such weight.
    """
    for name, shape in found.items():
        expected = tuple(parameters[name].shape) if name in parameters else "no such weight"
        if shape != expected:
            raise UserError(f"{path}: found {name} {shape}, expected {expected}")
