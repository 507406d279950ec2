"""Scores of samples for queries, and their file.

Shapes: Q queries, N samples, B samples of a chunk, K highest-scored samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_attr.artifacts.expect import expect_settings, expect_tensors
from lightning_attr.artifacts.tensors import load_artifact, save_tensors
from lightning_attr.errors import UserError

SIGN = "higher = more influential = removing it makes the model worse at the output"
"""What the sign of scores means, in every file and wherever they are shown."""

OF_A_MODEL = ("digests", "digest", "samples", "changed")
"""Settings, nested ones included, that differ from one model to the next though the method is the same."""


@dataclass(frozen=True)
class Scores:
    """How much each sample influenced each query, with the sign that :data:`SIGN` names.

    Args:
        scores: Float32 [Q, N].
        query_id: Int64 [Q].
        sample_id: Int64 [N].
        method: Name of the method that made them.
        settings: What else they depend on; anything that JSON can hold.

    Raises:
        UserError: Shapes do not fit together, or an id occurs twice.
    """

    scores: Tensor
    query_id: Tensor
    sample_id: Tensor
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in (("scores", torch.float32), ("query_id", torch.int64), ("sample_id", torch.int64)):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().to("cpu", dtype).contiguous())
        expected = (len(self.query_id), len(self.sample_id))
        if tuple(self.scores.shape) != expected:
            raise UserError(f"scores: found shape {tuple(self.scores.shape)}, expected {expected}: queries by samples")
        for name in ("query_id", "sample_id"):
            if len(getattr(self, name).unique()) != len(getattr(self, name)):
                raise UserError(f"scores.{name}: found an id twice, expected each once")

    @property
    def of_method(self) -> dict[str, Any]:
        """Return the settings that are the method's, and the same for other models, stores and samples.

        A file that it reads is named by its digest, wherever it lies; what is made anew for each model is left out.
        """
        files = self.settings.get("digests", {})
        return {name: _own(value, name, files) for name, value in self.settings.items() if name not in OF_A_MODEL}

    @property
    def depth(self) -> int:
        """Return how many samples of each query are ranked: all of them."""
        return len(self.sample_id)

    def ranked(self, query_id: int, k: int) -> list[tuple[int, float]]:
        """Return the ids and scores of a query's ``k`` highest-scored samples, as :meth:`top` orders them."""
        row, ids = self.scores[_row(self, query_id, k)].numpy(), self.sample_id.numpy()
        if np.isnan(row).any():
            raise UserError(f"scores: found NaN for query {query_id}, expected numbers")
        order = np.lexsort((ids, -row))[:k]
        return list(zip(ids[order].tolist(), row[order].tolist(), strict=True))

    def top(self, query_id: int, k: int) -> list[int]:
        """Return the ids of a query's ``k`` highest-scored samples, best first; of equal scores, the smaller id first.

        Raises:
            UserError: The query is not among them, a score of it is NaN, or there are fewer than ``k`` samples.
        """
        return [sample for sample, _ in self.ranked(query_id, k)]

    def of_queries(self, ids: Collection[int]) -> Scores:
        """Return the scores of those of the queries that are among ``ids``."""
        rows = [row for row, query in enumerate(self.query_id.tolist()) if query in ids]
        return Scores(self.scores[rows], self.query_id[rows], self.sample_id, self.method, self.settings)

    @classmethod
    def stack(cls, parts: Sequence[Scores]) -> Scores:
        """Stack the rows of several scores over the same samples, which must agree in method and settings.

        Raises:
            UserError: There are none, or they do not fit together.
        """
        if not parts:
            raise UserError("scores: found nothing to stack, expected at least one")
        first = parts[0]
        for part in parts[1:]:
            if not torch.equal(part.sample_id, first.sample_id):
                raise UserError("scores: found different samples, expected the same in each to stack them")
            if part.method != first.method:
                raise UserError(f"scores: found methods {first.method} and {part.method}, expected one to stack them")
            names = sorted(first.settings.keys() | part.settings.keys())
            if other := [name for name in names if part.settings.get(name) != first.settings.get(name)]:
                raise UserError(f"scores: found different settings {', '.join(other)}, expected the same to stack them")
        scores, query_id = torch.cat([part.scores for part in parts]), torch.cat([part.query_id for part in parts])
        return cls(scores, query_id, first.sample_id, first.method, first.settings)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {"scores": self.scores, "query_id": self.query_id, "sample_id": self.sample_id}
        save_tensors(path, "scores", tensors, self.settings, method=self.method, sign=SIGN)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: The file is missing, damaged, or holds no scores, scores of another sign, or only those of the
                highest-scored samples.
        """
        scores = load_scores(path)
        if isinstance(scores, TopScores):
            raise UserError(f"{path}: found the top {scores.depth} of each query only, expected scores of all samples")
        return scores


@dataclass(frozen=True)
class TopScores:
    """The highest-scored samples of each query; what remains of scores where queries by samples is too large.

    Args:
        index: Int64 [Q, K], ids of the samples, best first; of equal scores, the smaller id first.
        value: Float32 [Q, K], their scores.
        query_id: Int64 [Q].
        method: Name of the method that made them.
        settings: What else they depend on; anything that JSON can hold.

    Raises:
        UserError: Shapes do not fit together, an id occurs twice in a row, or a row is not in order.
    """

    index: Tensor
    value: Tensor
    query_id: Tensor
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in (("index", torch.int64), ("value", torch.float32), ("query_id", torch.int64)):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().to("cpu", dtype).contiguous())
        if self.index.ndim != 2 or self.index.shape != self.value.shape or len(self.index) != len(self.query_id):
            raise UserError(
                f"scores: found index {tuple(self.index.shape)} and value {tuple(self.value.shape)}, "
                f"expected ({len(self.query_id)}, K) twice: queries by ranks"
            )
        for query, ids, values in zip(self.query_id.tolist(), self.index, self.value, strict=True):
            if len(set(ids.tolist())) < len(ids):
                raise UserError(f"scores: found a sample twice for query {query}, expected each once")
            if not (values[:-1] >= values[1:]).all():
                raise UserError(f"scores: found scores of query {query} that do not fall, expected the best first")
        if len(set(self.query_id.tolist())) < len(self.query_id):
            raise UserError("scores.query_id: found an id twice, expected each once")

    @property
    def depth(self) -> int:
        """Return how many samples of each query are ranked."""
        return self.index.shape[1]

    def ranked(self, query_id: int, k: int) -> list[tuple[int, float]]:
        """Return the ids and scores of a query's ``k`` highest-scored samples, best first.

        Raises:
            UserError: The query is not among them, or fewer than ``k`` samples are ranked.
        """
        row = _row(self, query_id, k)
        return list(zip(self.index[row, :k].tolist(), self.value[row, :k].tolist(), strict=True))

    def top(self, query_id: int, k: int) -> list[int]:
        """Return the ids of a query's ``k`` highest-scored samples, best first, as :meth:`Scores.top` gives them."""
        return [sample for sample, _ in self.ranked(query_id, k)]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {"index": self.index, "value": self.value, "query_id": self.query_id}
        save_tensors(path, "top scores", tensors, self.settings, method=self.method, sign=SIGN)


def merge_top(index: Tensor, value: Tensor, sample_id: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Merge more samples into the highest-scored ones so far: index and value [Q, at most k], in order.

    Args:
        index: Ids of the samples so far, [Q, K], best first.
        value: Their scores, [Q, K], no NaN.
        sample_id: Ids of the further samples [B], ascending, and each above all those so far.
        scores: Their scores, [Q, B], no NaN.
        k: How many to keep.
    """
    # Equal scores keep their order here, in which the smaller id comes first already.
    value, order = torch.cat([value, scores], dim=1).sort(dim=1, descending=True, stable=True)
    index = torch.cat([index, sample_id.expand(len(index), -1)], dim=1)
    return index.gather(1, order[:, :k]), value[:, :k]


def load_scores(path: str | Path) -> Scores | TopScores:
    """Read scores of either form; files of earlier versions do not name their sign, which is the same.

    Raises:
        UserError: The file is missing, damaged, or holds no scores, or scores of another sign.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file, expected scores")
    tensors, header = load_artifact(path, *KINDS)
    if (sign := header.words.get("sign", SIGN)) != SIGN:
        raise UserError(f"{path}: found scores of the sign {sign!r}, expected {SIGN!r}")
    form, expected = KINDS[header.kind]
    expect_tensors(path, tensors, expected)
    expect_settings(str(path), header.words, {"method": str})
    return form(**{name: tensors[name] for name in expected}, method=header.words["method"], settings=header.settings)


#: The forms of scores, by what their files say that they hold, and the tensors of each.
KINDS: Mapping[str, tuple[type[Scores] | type[TopScores], Mapping[str, str]]] = {
    "scores": (Scores, {"scores": "float Q N", "query_id": "int Q", "sample_id": "int N"}),
    "top scores": (TopScores, {"index": "int Q K", "value": "float Q K", "query_id": "int Q"}),
}


def _row(scores: Scores | TopScores, query_id: int, k: int) -> int:
    """Return the row of a query of which ``k`` samples are asked for."""
    rows = (scores.query_id == query_id).nonzero().flatten()
    if len(rows) == 0:
        raise UserError(f"scores: found no query {query_id}, expected one of {_shown(scores.query_id)}")
    if not 0 <= k <= scores.depth:
        raise UserError(f"scores: found top {k}, expected 0 to {scores.depth}, the number of samples that are ranked")
    return int(rows[0])


def _shown(ids: Tensor, most: int = 10) -> str:
    values = ids[:most].tolist()
    return f"{values}" if len(ids) <= most else f"{values} and {len(ids) - most} more"


def _own(value: Any, place: str, files: Mapping[str, str]) -> Any:
    """Return a setting without what differs between models, and with digests in the place of files.

    Args:
        value: The setting.
        place: Its dotted name.
        files: Digests of files by dotted names.
    """
    if place in files:
        return files[place]
    if isinstance(value, Mapping):
        return {name: _own(each, f"{place}.{name}", files) for name, each in value.items() if name not in OF_A_MODEL}
    if isinstance(value, list):
        return [_own(each, f"{place}.{index}", files) for index, each in enumerate(value)]
    return value
