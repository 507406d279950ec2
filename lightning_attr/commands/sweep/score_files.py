"""The files of scores that a sweep's config names by patterns, and which of them has a query."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob

from lightning_attr.artifacts.scores import load_scores
from lightning_attr.errors import UserError


def matching(pattern: str) -> list[str]:
    """Return the files that a pattern names, sorted.

    Raises:
        UserError: There is none.
    """
    if not (paths := sorted(glob(pattern))):
        raise UserError(f"scores: found no file {pattern}")
    return paths


def files_by_query(key: str, pattern: str, queries: Sequence[int]) -> dict[int, str]:
    """Return the file that has each of the queries.

    Args:
        key: Where the pattern is in the config.
        pattern: The files.
        queries: Ids of the queries, in the order of the result.

    Raises:
        UserError: A query is in no file, or one is in two.
    """
    files: dict[int, str] = {}
    for path in matching(pattern):
        for query_id in load_scores(path).query_id.tolist():
            if files.setdefault(query_id, path) != path:
                raise UserError(
                    f"{key}: found query {query_id} in {files[query_id]} and in {path}, expected it in one file"
                )
    for query in queries:
        if query not in files:
            raise UserError(f"{key}: found no query {query} in {pattern}")
    return {query: files[query] for query in queries}
