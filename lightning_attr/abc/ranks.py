"""The ranks of all exemplars by each method: all that the table of a set is made from, and a small file.

Shapes: Q queries, N samples of the scores, D distractors, E the most exemplars of a model, P ranks in all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_attr.abc.set import AbcSet, CustomModel, check_models, read_models
from lightning_attr.artifacts import load_artifact, save_tensors
from lightning_attr.artifacts.expect import expect_settings, expect_tensors
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.artifacts.scores import Scores
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics import Ranks, exemplar_ranks
from lightning_attr.runs.folder import run_seconds

KIND = "abc"


@dataclass(frozen=True, eq=False)
class MethodRanks:
    """The ranks of exemplars by one method.

    Args:
        method: Its name, or label.
        query_id: The queries that it has scored, ascending, int64 [Q].
        ranks: Of their exemplars, in the order in which their models name these, [Q, E].
        distractors: D, of each gallery.
        seconds: How long it took in all; None where that is not known.
        settings: What the scores depend on but for what differs between models.
    """

    method: str
    query_id: Tensor
    ranks: Ranks
    distractors: int
    seconds: float | None
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class AbcRanks:
    """The ranks of all exemplars of a set by any number of methods; nothing else of the set is needed for its table.

    Args:
        models: Those of the set.
        digests: Of ``gallery`` and ``queries``.
        methods: Each with a name of its own.
    """

    models: tuple[CustomModel, ...]
    digests: Mapping[str, str]
    methods: tuple[MethodRanks, ...]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        counts = {query: len(model.exemplars) for model in self.models for query in model.query_ids}
        tensors: dict[str, Tensor] = {}
        methods = []
        for place, each in enumerate(self.methods):
            held = _held(each.query_id, counts)
            rows = {"query_id": each.query_id, "above": each.ranks.above[held], "equal": each.ranks.equal[held]}
            tensors |= {f"{place}.{name}": value.to(torch.int32) for name, value in rows.items()}
            own = {"method": each.method, "distractors": each.distractors, "seconds": each.seconds}
            methods.append({**own, "settings": dict(each.settings)})
        settings = {"digests": dict(self.digests), "models": [asdict(model) for model in self.models]}
        save_tensors(path, KIND, tensors, {**settings, "methods": methods})

    @classmethod
    def load(cls, path: str | Path) -> AbcRanks:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: The file is missing, damaged, or makes no sense.
        """
        tensors, header = load_artifact(path, KIND)
        expect_settings(str(path), header.settings, {"digests": dict, "models": list, "methods": list})
        models = read_models(path, header.settings["models"])
        check_models(models)
        counts = {query: len(model.exemplars) for model in models for query in model.query_ids}
        methods = []
        for place, found in enumerate(header.settings["methods"]):
            where = f"{path}: methods[{place}]"
            expect_settings(where, found, {"method": str, "distractors": int, "settings": dict})
            own = {name: f"{place}.{name}" for name in ("query_id", "above", "equal")}
            expect_tensors(path, tensors, {own["query_id"]: "int Q", own["above"]: "int P", own["equal"]: "int P"})
            query_id, above, equal = (tensors[name].long() for name in own.values())
            if unknown := sorted(set(query_id.tolist()) - counts.keys()):
                raise UserError(f"{where}: found query {unknown[0]}, expected those of its models")
            held = _held(query_id, counts)
            if int(held.sum()) != len(above):
                raise UserError(f"{where}: found {len(above)} ranks, expected {int(held.sum())}, one an exemplar")
            filled = Ranks(
                *(torch.zeros(held.shape, dtype=torch.int64).masked_scatter(held, v) for v in (above, equal))
            )
            known = {name: found[name] for name in ("method", "distractors", "settings")}
            methods.append(MethodRanks(query_id=query_id, ranks=filled, seconds=found.get("seconds"), **known))
        return cls(models, header.settings["digests"], tuple(methods))


def _held(query_id: Tensor, counts: Mapping[int, int]) -> Tensor:
    """Return which columns of a query are of an exemplar, bool [Q, E]."""
    exemplars = torch.tensor([counts[query] for query in query_id.tolist()])
    return torch.arange(max(counts.values())) < exemplars[:, None]


class ScoreRun(NamedTuple):
    """Scores, the file that they are from, and how long its run took."""

    path: str
    scores: Scores
    seconds: float | None


def ranks_of(of: AbcSet, paths: Sequence[str]) -> tuple[MethodRanks, ...]:
    """Return the ranks of exemplars by files of scores.

    Those of one method and the same settings belong together, such as of single models, whose weights differ; where
    several settings share a method's name, it is followed by the first of their files.

    Raises:
        UserError: A file is damaged, or of another set, a query is in two of a method, or a gallery is not whole.
    """
    groups: dict[str, list[ScoreRun]] = {}
    for path in paths:
        scores = Scores.load(path)
        for role, store in (("queries", of.queries), ("store", of.gallery)):
            check_made_from(path, scores.settings, role, store.digest, store.path)
        key = json.dumps([scores.method, scores.of_method], sort_keys=True)
        groups.setdefault(key, []).append(ScoreRun(path, scores, run_seconds(path)))
    names = [files[0].scores.method for files in groups.values()]
    labels = [
        name if names.count(name) == 1 else f"{name} ({files[0].path})"
        for name, files in zip(names, groups.values(), strict=True)
    ]
    return tuple(method_ranks(of, label, files) for label, files in zip(labels, groups.values(), strict=True))


def method_ranks(of: AbcSet, method: str, files: Sequence[ScoreRun]) -> MethodRanks:
    """Return the ranks of exemplars by one method, whose scores may be in a file of each model.

    Raises:
        UserError: A query is not of the set, or in two files, or files have other distractors than the first.
    """
    distractors = torch.from_numpy(of.gallery.ids[of.distractors])
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    first: Tensor | None = None
    for path, scores, _ in files:
        known = torch.isin(scores.sample_id, distractors)
        found = scores.sample_id[known].sort().values
        first = found if first is None else first
        if len(found) == 0:
            raise UserError(f"{path}: found no distractor of the set, expected at least one")
        if not torch.equal(found, first):
            raise UserError(f"{path}: found {len(found)} distractors, expected the {len(first)} of {files[0].path}")
        of_rows = {query: row for row, query in enumerate(scores.query_id.tolist())}
        for model in of.models:
            queries = [query for query in model.query_ids if query in of_rows]
            if again := [query for query in queries if query in rows]:
                raise UserError(
                    f"{path}: found query {again[0]}, which another file of {method} has too; expected each once"
                )
            if queries:
                own = scores.scores[[of_rows.pop(query) for query in queries]]
                ranks = _ranks(f"{path}: {model.name}", own, scores.sample_id, known, model)
                rows |= {query: (above, equal) for query, above, equal in zip(queries, *ranks, strict=True)}
        if of_rows:
            raise UserError(f"{path}: found query {min(of_rows)}, expected those of the set's models")
    if first is None or not rows:
        raise UserError(f"{method}: found no query, expected at least one")
    most = max(len(model.exemplars) for model in of.models)
    ordered = sorted(rows)
    padded = Ranks(*(torch.stack([_padded(rows[query][part], most) for query in ordered]) for part in (0, 1)))
    seconds = [file.seconds for file in files]
    total = None if None in seconds else sum(each for each in seconds if each is not None)
    settings = files[0].scores.of_method
    return MethodRanks(method, torch.tensor(ordered), padded, len(first), total, settings)


def _ranks(where: str, scores: Tensor, sample_id: Tensor, known: Tensor, model: CustomModel) -> Ranks:
    """Return the ranks of a model's exemplars among them and the distractors."""
    at = {sample: column for column, sample in enumerate(sample_id.tolist())}
    if missing := [exemplar for exemplar in model.exemplars if exemplar not in at]:
        raise UserError(f"{where}: found no score of exemplar {missing[0]}, expected all of its exemplars")
    if scores.isnan().any():
        raise UserError(f"{where}: found NaN among its scores, expected numbers")
    columns = torch.tensor([at[exemplar] for exemplar in model.exemplars])
    gallery = torch.cat([scores[:, columns], scores[:, known]], dim=1)
    return exemplar_ranks(gallery, torch.arange(len(columns)))


def _padded(values: Tensor, most: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, most - len(values)))
