"""How the queries of a store were sampled, so that they can be sampled again."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.store import Store
from lightning_attr.console import warn
from lightning_attr.errors import UserError


def sampling_of(queries: Store, ids: Sequence[int]) -> tuple[list[int], int, float]:
    """Return the seed of each query, and the number of steps and the guidance that all were sampled with.

    Raises:
        UserError: A query does not say how it was sampled, or not all were sampled alike.
    """
    attributes = [queries.meta(int(position)).attributes for position in queries.positions(ids)]
    for query, found in zip(ids, attributes, strict=True):
        if missing := [name for name in ("seed", "steps", "guidance") if name not in found]:
            raise UserError(f"queries {queries.path}: found no {missing[0]} of query {query}, expected sampled queries")
    alike = {(int(found["steps"]), float(found["guidance"])) for found in attributes}
    if len(alike) > 1:
        raise UserError(f"queries {queries.path}: found steps and guidance {sorted(alike)}, expected all sampled alike")
    return [int(found["seed"]) for found in attributes], *alike.pop()


def known_sampling_of(queries: Store, ids: Sequence[int]) -> tuple[list[int], int, float] | None:
    """Return what :func:`sampling_of` does; None, with a warning, for queries from files that do not all say it.

    Raises:
        UserError: As of :func:`sampling_of`, for queries that are not from files.
    """
    try:
        return sampling_of(queries, ids)
    except UserError as error:
        if queries.made_from.get("source") != "queries":
            raise
        warn(f"{error}; none is made again, and their losses alone are compared")
        return None
