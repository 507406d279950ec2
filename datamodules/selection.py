"""Which samples of a store are used: all but some, or some only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.grouping import read_groups
from datamodules.hashing import shuffled
from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.artifacts.scores import Scores, TopScores, load_scores
from lightning_attr.errors import UserError, expect_within

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Exclude:
    """Samples to leave out, named in exactly one way.

    Args:
        ids: These.
        scores: Scores files: the samples scored highest for a query.
        query: Ids of the queries of ``scores``; all of them by default.
        top: How many samples in all: the query's highest-scored ones, or those of several queries rank by rank in turn.
        random: So many at random.
        seed: Of ``random``.
        group: The samples of this group, or of these groups.
        grouping: What names the groups: an attribute of samples, such as ``artist``, or a file of clusters.

    Raises:
        UserError: None or several ways are given.
    """

    ids: list[int] | None = None
    scores: InputPath | list[InputPath] | None = None
    query: int | list[int] | None = None
    top: int | None = None
    random: int | None = None
    seed: int = 0
    group: str | list[str] | None = None
    grouping: InputPath | None = None

    def __post_init__(self) -> None:
        if (self.group is None) != (self.grouping is None):
            raise UserError(f"exclude: found grouping {self.grouping} and group {self.group}, expected both or neither")
        _one_way("exclude", ids=self.ids, scores=self.scores, random=self.random, group=self.group)
        if (self.scores is None) != (self.top is None):
            raise UserError(f"exclude: found scores {self.scores} and top {self.top}, expected both or neither")
        if self.scores is None and self.query is not None:
            raise UserError(f"exclude.query: found {self.query} without scores, expected it with scores only")
        if self.query == []:
            raise UserError("exclude.query: found no query, expected at least one, or null for the only one there is")
        expect_within("exclude.top", self.top, 1)
        expect_within("exclude.random", self.random, 1)

    @property
    def group_names(self) -> list[str]:
        """Return the names of the groups that are left out whole."""
        return [self.group] if isinstance(self.group, str) else self.group or []


@dataclass(frozen=True)
class Subset:
    """Samples to use, named in exactly one way.

    Args:
        ids: These.
        fraction: A random share of the store, above 0 and at most 1.
        first: The first so many of the store.
        scores: Scores files: all samples that are among the highest-scored ones of any of their queries.
        top: How many of each query.
        seed: Of ``fraction``.

    Raises:
        UserError: None or several ways are given, or a value is out of range.
    """

    ids: list[int] | None = None
    fraction: float | None = None
    first: int | None = None
    scores: InputPath | list[InputPath] | None = None
    top: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _one_way("subset", ids=self.ids, fraction=self.fraction, first=self.first, scores=self.scores)
        if (self.scores is None) != (self.top is None):
            raise UserError(f"subset: found scores {self.scores} and top {self.top}, expected both or neither")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"subset.fraction: found {self.fraction}, expected above 0 and at most 1")
        expect_within("subset.first", self.first, 1)
        expect_within("subset.top", self.top, 1)


def kept_positions(store: Store, exclude: Exclude | None = None, subset: Subset | None = None) -> Ints:
    """Return the positions to use, ascending. The subset is taken first, and ``exclude.random`` draws from it.

    Raises:
        UserError: More samples are asked for than there are, an id is not there, or nothing is left.
    """
    chosen = np.arange(len(store)) if subset is None else _subset_positions(store, subset)
    if exclude is not None:
        chosen = np.setdiff1d(chosen, _excluded(store, exclude, chosen))
    if not len(chosen):
        raise UserError(f"{store.path}: found no sample left of {len(store)} after exclude and subset, expected some")
    return chosen


def _subset_positions(store: Store, subset: Subset) -> Ints:
    if subset.ids is not None:
        return np.unique(store.positions(subset.ids))
    if subset.first is not None:
        return np.arange(_at_most("subset.first", subset.first, len(store)))
    if subset.scores is not None:
        assert subset.top is not None
        return np.unique(store.positions(_candidates(store, _paths(subset.scores), subset.top)))
    assert subset.fraction is not None
    count = max(1, round(subset.fraction * len(store)))
    return np.sort(shuffled(store.ids, "subset", subset.seed)[:count])


def _excluded(store: Store, exclude: Exclude, chosen: Ints) -> Ints:
    """Return the positions to leave out of the chosen ones; they may name others, too."""
    if exclude.ids is not None:
        return store.positions(exclude.ids)
    if exclude.random is not None:
        count = _at_most("exclude.random", exclude.random, len(chosen))
        return chosen[shuffled(store.ids[chosen], "exclude", exclude.seed)[:count]]
    if exclude.group is not None:
        assert exclude.grouping is not None
        groups = read_groups(store, exclude.grouping)
        return np.unique(np.concatenate([groups.members(name) for name in exclude.group_names]))
    assert exclude.scores is not None
    assert exclude.top is not None
    _at_most("exclude.top", exclude.top, len(store))
    return store.positions(_top_ids(store, _paths(exclude.scores), exclude.query, exclude.top))


def _paths(scores: str | list[str]) -> list[str]:
    return [scores] if isinstance(scores, str) else scores


def _scores_of(store: Store, path: str) -> Scores | TopScores:
    scores = load_scores(path)
    check_made_from(path, scores.settings, "store", store.digest, store.path)  # ids of others mean other images
    return scores


def _candidates(store: Store, paths: Sequence[str], top: int) -> list[int]:
    """Return all samples that are among the ``top`` of a query; with repetitions."""
    found: list[int] = []
    for path in paths:
        scores = _scores_of(store, path)
        k = _at_most(f"subset.top of {path}", top, scores.depth)
        for query_id in scores.query_id.tolist():
            found += scores.top(query_id, k)
    return found


def _top_ids(store: Store, paths: Sequence[str], query: int | list[int] | None, top: int) -> list[int]:
    """Return the ``top`` samples that stand highest: all queries' first ones, then their second ones, and so on."""
    rankings: list[list[int]] = []
    asked = None if query is None else {query} if isinstance(query, int) else set(query)
    seen: set[int] = set()
    for path in paths:
        scores = _scores_of(store, path)
        queries = set(scores.query_id.tolist())
        seen |= queries
        for query_id in sorted(queries if asked is None else queries & asked):
            rankings.append(scores.top(query_id, _at_most(f"exclude.top of {path}", top, scores.depth)))
    if asked is not None and (missing := sorted(asked - seen)):
        raise UserError(
            f"exclude.query: found no query {missing[0]} in {', '.join(paths)}, expected one of {sorted(seen)}"
        )
    in_turn = dict.fromkeys(sample for rank in zip(*rankings, strict=True) for sample in rank)
    return sorted(list(in_turn)[:top])


def _one_way(name: str, **ways: object) -> None:
    given = [way for way, value in ways.items() if value is not None]
    if empty := [way for way in given if ways[way] == []]:
        raise UserError(f"{name}.{empty[0]}: found none, expected at least one")
    if len(given) != 1:
        raise UserError(f"{name}: found {' and '.join(given) or 'nothing'}, expected exactly one of {', '.join(ways)}")


def _at_most(name: str, value: int, most: int) -> int:
    if value > most:
        raise UserError(f"{name}: found {value}, expected at most {most}, the number of samples there are")
    return value
