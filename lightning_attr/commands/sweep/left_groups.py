"""Leave-group-out: which groups a sweep retrains without."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from xxhash import xxh3_64_hexdigest

from datamodules.grouping import grouping_name, read_groups
from datamodules.store import Store
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.sweep.score_files import files_by_query
from lightning_attr.errors import UserError
from lightning_attr.groups import group_scores, reduction_of


@dataclass(frozen=True)
class LeaveGroupOut:
    """Leave-group-out: a model trained without each of some groups, and models without as many random samples.

    Args:
        grouping: What names the groups: an attribute of samples, such as ``artist``, or a file of clusters.
        names: These groups.
        scores: The scores of each method, as in ``top``: the group that each ranks first for a query.
        queries: Ids of the queries of ``scores``; None is all of the query store.
        random: Models without as many random samples, for each size of a group; those of ``random`` count as such.
        seeds: Training seeds of all these models; see ``random``.
    """

    grouping: str
    names: list[str] | None = None
    scores: dict[str, str] | None = None
    queries: list[int] | None = None
    random: int = 1
    seeds: int = 1


def left_groups(chosen: LeaveGroupOut, store: Store, queries: Sequence[int]) -> dict[str, int]:
    """Return the names of the groups to train without, each once, and how many samples each has.

    Args:
        chosen: The section of the config.
        store: What the original was trained on.
        queries: Ids of all queries.

    Raises:
        UserError: None is named, a group or a query is not there, or scores are of other samples.
    """
    if not chosen.names and not chosen.scores:
        raise UserError("groups: found neither names nor scores, expected at least one of them")
    groups = read_groups(store, chosen.grouping)
    found = [*(chosen.names or []), *_first_groups(chosen, store, queries)]
    sizes = {name: len(groups.members(name)) for name in found}
    for name, size in sizes.items():
        if size == len(store):
            raise UserError(f"groups: found all {size} samples in {name!r}, expected some left to train on")
    return sizes


def _first_groups(chosen: LeaveGroupOut, store: Store, queries: Sequence[int]) -> Iterator[str]:
    """Yield the group that each method ranks first for each query."""
    queries = queries if chosen.queries is None else chosen.queries
    for method, pattern in (chosen.scores or {}).items():
        files = files_by_query(f"sweep.groups.scores.{method}", pattern, queries)
        for path in dict.fromkeys(files.values()):
            scores = Scores.load(path).of_queries([query for query in queries if files[query] == path])
            check_made_from(path, scores.settings, "store", store.digest, store.path)
            groups = read_groups(store, chosen.grouping, scores.sample_id.numpy())
            values = group_scores(scores.scores, groups, reduction_of(scores.method))
            values[:, torch.from_numpy(~groups.named)] = -torch.inf
            yield from (groups.names[first] for first in values.argmax(1).tolist())


def folder_of(grouping: str, name: str) -> str:
    """Return the folder of the entry that trains without a group."""
    return f"group/{_slug(grouping_name(grouping))}/{_slug(name)}"


def _slug(name: str) -> str:
    """Return a name as that of a folder; a digest tells those apart that are alike in letters and digits."""
    plain = re.sub(r"[^\w+-]+", "-", name)[:40]
    return plain if plain == name else f"{plain}-{xxh3_64_hexdigest(name.encode())[:8]}"
