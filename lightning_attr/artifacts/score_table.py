"""Scores in several files, by method."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lightning_attr.artifacts.scores import Scores, TopScores


class ScoreFile(NamedTuple):
    """Scores and the file that they are from."""

    path: str
    scores: Scores | TopScores


class ScoreTable:
    """Files of scores by label: those of one method and the same settings, such as of single queries, belong together.

    A label is the method's name; where several settings share it, followed by the first of their files.

    Args:
        files: In the order that labels and files keep.
    """

    def __init__(self, files: Iterable[ScoreFile]) -> None:
        groups: dict[str, list[ScoreFile]] = {}
        for file in files:
            key = json.dumps([file.scores.method, file.scores.settings], sort_keys=True)
            groups.setdefault(key, []).append(file)
        methods = Counter(first.scores.method for first, *_ in groups.values())
        self._groups = {
            _label(group[0], alone=methods[group[0].scores.method] == 1): group for group in groups.values()
        }

    def __iter__(self) -> Iterator[tuple[str, list[ScoreFile]]]:
        """Yield each label and its files."""
        yield from self._groups.items()


def _label(first: ScoreFile, alone: bool) -> str:
    return first.scores.method if alone else f"{first.scores.method} ({first.path})"
