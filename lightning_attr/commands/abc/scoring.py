"""Scores by a method that looks at each customised model's own weights, and what is run for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from datamodules.hashing import shuffled
from lightning_attr.abc.set import AbcSet, CustomModel
from lightning_attr.commands.abc.stages import Stage
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError, expect_within
from lightning_attr.options import check_yaml

#: What the folders of a model's runs are named by; a run of its own training is one of them.
TRAINING = ("train", "sample")


@dataclass(frozen=True)
class Step:
    """A stage that is run for every model.

    Args:
        verb: ``fit``, or ``predict`` in the last one, which scores.
        configs: The files of its config, which may name ``${vars.run}``, the folder of this method's runs for the
            model; ``${vars.checkpoint}``, the model's; ``${vars.set}``; and ``${vars.query}``.
        each_query: Whether it is run for every query of the model, such as unlearning.
    """

    verb: Literal["fit", "predict"]
    configs: list[str]
    each_query: bool = False


@dataclass(frozen=True)
class Scoring:
    """Scores of a set by one method, model by model.

    Args:
        set: The folder of the set.
        models: Where the models' runs are: ``models`` below the folder of ``abc make``.
        method: What the table calls it, and the folder of its runs below that of a model.
        steps: What is run for each model, in order. Each runs in a folder that is called as the first of its configs.
        out: The file of ranks to make.
        split: The models to score for; None is all.
        distractors: Only so many of the set's, drawn at random and the same for all models; None is all.
        seed: Of the draw.
        queries: Only the first so many of each kind of prompt of a model, for stages that are run for every query;
            None is all.
    """

    set: str
    models: str
    method: str
    steps: list[Step]
    out: str
    split: Literal["train", "validation", "test"] | None = "test"
    distractors: int | None = None
    seed: int = 0
    queries: int | None = None

    def folder_of(self, model: CustomModel) -> Path:
        """Return the folder of the method's runs for a model."""
        return Path(self.models) / model.name / self.method

    def checkpoint_of(self, model: CustomModel) -> Path:
        """Return the checkpoint of a model."""
        return Path(self.models) / model.name / "train" / "checkpoints" / "last.ckpt"

    def scores_of(self, model: CustomModel) -> Path:
        """Return the file of scores for a model's queries."""
        return self.folder_of(model) / Path(self.steps[-1].configs[0]).stem / "scores.safetensors"

    def queries_of(self, model: CustomModel) -> list[int]:
        """Return the ids of a model's queries that are scored, ascending."""
        return sorted(query for ids in model.queries.values() for query in sorted(ids)[: self.queries])


def check_scoring(scoring: Scoring, of: AbcSet) -> None:
    """Check what would fail in the middle otherwise.

    Raises:
        UserError: It does not make sense, or a model is not that of the set.
    """
    expect_within("scores.distractors", scoring.distractors, 1, len(of.distractors))
    expect_within("scores.queries", scoring.queries, 1)
    if not scoring.steps or scoring.steps[-1].verb != "predict" or scoring.steps[-1].each_query:
        raise UserError("scores.steps: found no predict at their end, expected the one that scores a model's queries")
    if not scoring.method or "/" in scoring.method or scoring.method in (*TRAINING, ".", ".."):
        raise UserError(f"scores.method: found {scoring.method!r}, expected the name of a folder")
    for step in scoring.steps:
        if not step.configs:
            raise UserError("scores.steps: found one without configs, expected at least one file")
        for config in step.configs:
            if not Path(config).is_file():
                raise UserError(f"scores.steps: found no file {config}")
    for model in of.models:
        path = scoring.checkpoint_of(model)
        if scoring.split not in (None, model.split):
            continue
        if not path.is_file():
            raise UserError(f"scores.models: found no {path}, expected the checkpoint of {model.name}")
        if model.checkpoint is not None and (found := file_digest(path)) != model.checkpoint:
            raise UserError(f"{path}: found digest {found}, expected {model.checkpoint} as the set has it")


def gallery(scoring: Scoring, of: AbcSet, model: CustomModel) -> dict[str, Any]:
    """Return which samples a model's queries are compared with, as settings of the data."""
    ids = of.gallery.ids
    if scoring.distractors is None:
        others = {exemplar for other in of.models for exemplar in other.exemplars} - set(model.exemplars)
        return {"exclude": {"ids": sorted(others)}} if others else {}
    chosen = shuffled(ids[of.distractors], "distractors", scoring.seed)[: scoring.distractors]
    return {"subset": {"ids": sorted([*ids[of.distractors[chosen]].tolist(), *model.exemplars])}}


def stages(scoring: Scoring, of: AbcSet, model: CustomModel, progress: str) -> Iterator[Stage]:
    """Yield the stages of a model."""
    run = scoring.folder_of(model)
    known = {"run": str(run), "checkpoint": str(scoring.checkpoint_of(model)), "set": scoring.set}
    for step in scoring.steps:
        name = Path(step.configs[0]).stem
        own: dict[str, Any] = {}
        if _has_data(step):
            own["data"] = {"init_args": gallery(scoring, of, model)}
        if step.each_query:
            for query in scoring.queries_of(model):
                title, folder = f"{progress}: {name} of query {query}", run / name / str(query)
                yield Stage(title, step.verb, step.configs, folder, own, {**known, "query": query})
        else:
            if step.verb == "predict":
                own["model"] = {"init_args": {"query_ids": scoring.queries_of(model)}}
            yield Stage(f"{progress}: {name}", step.verb, step.configs, run / name, own, known)


def _has_data(step: Step) -> bool:
    check_yaml([word for path in step.configs for word in ("-c", path)])
    return any("data" in yaml.safe_load(Path(path).read_text()) for path in step.configs)
