"""Which scores can be checked against a pack."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import torch

from lightning_attr.artifacts.scores import Scores
from lightning_attr.console import warn
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.pack import Pack


def read_scores(paths: Sequence[str], pack: Pack) -> dict[str, Scores]:
    """Read scores files by the name of their method; where several are of one method, with the file.

    Files of the same method and settings, such as those of single queries, count as one.

    Raises:
        UserError: A file is damaged, or is of other samples or queries than the pack, or two hold the same query.
    """
    groups: dict[str, dict[str, Scores]] = {}
    for path in paths:
        scores = match(Scores.load(path), pack, path)
        group = groups.setdefault(json.dumps([scores.method, scores.settings], sort_keys=True), {})
        for other, of_other in group.items():
            if again := set(of_other.query_id.tolist()) & set(scores.query_id.tolist()):
                raise UserError(f"{path}: found query {min(again)}, which {other} has too; expected each query once")
        group[path] = scores
    methods = Counter(next(iter(group.values())).method for group in groups.values())
    named = {}
    for group in groups.values():
        path, first = next(iter(group.items()))
        label = first.method if methods[first.method] == 1 else f"{first.method} ({path})"
        named[label] = Scores.stack(list(group.values()))
    return named


def match(scores: Scores, pack: Pack, path: str) -> Scores:
    """Return scores with the samples in the order of the pack.

    The store of the scores may differ from the pack's in bytes, for one that is made again on another machine hardly
    agrees in every bit; then a warning says so, and ids tell whether it holds the same samples.

    Raises:
        UserError: They are of other samples or queries.
    """
    found, expected = (
        {"store": None, "queries": None, **each.get("digests", {})} for each in (scores.settings, pack.settings)
    )
    if _differ(found["queries"], expected["queries"]):
        raise UserError(
            f"{path}: of another query store: found digest {found['queries']}, "
            f"expected {expected['queries']} as the pack has it"
        )
    if _differ(found["store"], expected["store"]):
        warn(f"{path}: of a store with another digest than the pack's; taken for the same images, by their ids")
    _check_ids(path, "query", scores.query_id.tolist(), pack.query_id.tolist(), all_of_them=False)
    _check_ids(path, "sample", scores.sample_id.tolist(), pack.sample_id.tolist(), all_of_them=True)
    order = scores.sample_id.argsort()
    assert torch.equal(scores.sample_id[order], pack.sample_id)
    return Scores(scores.scores[:, order], scores.query_id, pack.sample_id, scores.method, scores.settings)


def _differ(found: str | None, expected: str | None) -> bool:
    return None not in (found, expected) and found != expected


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
