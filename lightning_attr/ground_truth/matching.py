"""Which scores can be checked against a pack."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_attr.artifacts.provenance import check_made_from, differs, digest_of
from lightning_attr.artifacts.score_table import ScoreFile, ScoreTable
from lightning_attr.artifacts.scores import Scores
from lightning_attr.console import warn
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.pack import Pack


def read_scores(paths: Sequence[str], pack: Pack) -> dict[str, Scores]:
    """Read scores files by the labels of a :class:`ScoreTable`.

    Raises:
        UserError: A file is damaged, or is of other samples or queries than the pack, or two hold the same query.
    """
    table = ScoreTable(ScoreFile(path, match(Scores.load(path), pack, path)) for path in paths)
    return {label: _stacked(files) for label, files in table}


def _stacked(files: Sequence[ScoreFile]) -> Scores:
    """Put the queries of files together, each of which may be in one of them."""
    where: dict[int, str] = {}
    for path, scores in files:
        for query in scores.query_id.tolist():
            if (other := where.setdefault(query, path)) != path:
                raise UserError(f"{path}: found query {query}, which {other} has too; expected each query once")
    return Scores.stack([file.scores for file in files if isinstance(file.scores, Scores)])


def match(scores: Scores, pack: Pack, path: str) -> Scores:
    """Return scores with the samples in the order of the pack.

    The store of the scores may differ from the pack's in bytes, for one that is made again on another machine hardly
    agrees in every bit; then a warning says so, and ids tell whether it holds the same samples.

    Raises:
        UserError: They are of other samples or queries.
    """
    digests = {role: digest_of(pack.settings, role) for role in ("queries", "store")}
    check_made_from(path, scores.settings, "queries", digests["queries"], "the pack")
    if differs(digest_of(scores.settings, "store"), digests["store"]):
        warn(f"{path}: of a store with another digest than the pack's; taken for the same images, by their ids")
    _check_ids(path, "query", scores.query_id.tolist(), pack.query_id.tolist(), all_of_them=False)
    _check_ids(path, "sample", scores.sample_id.tolist(), pack.sample_id.tolist(), all_of_them=True)
    order = scores.sample_id.argsort()
    assert torch.equal(scores.sample_id[order], pack.sample_id)
    return Scores(scores.scores[:, order], scores.query_id, pack.sample_id, scores.method, scores.settings)


def _check_ids(path: str, what: str, found: list[int], expected: list[int], all_of_them: bool) -> None:
    if unknown := sorted(set(found) - set(expected)):
        raise UserError(
            f"{path}: found {what} {unknown[0]}{_more(unknown)}, expected those of the pack: "
            f"{len(expected)} with ids {min(expected)} to {max(expected)}"
        )
    if all_of_them and (missing := sorted(set(expected) - set(found))):
        raise UserError(
            f"{path}: found no {what} {missing[0]}{_more(missing)}, expected all {len(expected)} of the pack"
        )


def _more(ids: list[int]) -> str:
    return f" and {len(ids) - 1} more" if len(ids) > 1 else ""
