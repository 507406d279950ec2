"""What ``explain`` runs: commands and configs of ordinary stages, all in the folder of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_attr.artifacts import write_atomically
from lightning_attr.commands.sweep.left_groups import folder_of
from lightning_attr.errors import UserError

#: Where the configs are, below the folder of the answer.
CONFIGS = "configs"

#: Samples drawn for each part of the curvature: passes over the store.
PASSES = 5

#: What ``data.exclude`` has of other ways than the one that is taken: the recipe may have named one.
NOTHING: Mapping[str, Any] = dict.fromkeys(("ids", "scores", "query", "top", "random", "grouping", "group"))


@dataclass(frozen=True)
class Question:
    """What is asked, and where the answer goes.

    Args:
        run: The folder of the answer.
        model: A checkpoint of ours, or the file that names a model and its adapter.
        store: The training images.
        queries: The query store.
        weights: Which weights are looked at; None leaves it to the methods.
        draws: Timesteps at which gradients are taken.
        batch_size: Samples whose gradients are taken at once.
        check: How many images a retraining goes without; None is no check.
        recipe: The config by which the model was trained, for the check.
    """

    run: Path
    model: Path
    store: Path
    queries: Path
    weights: str | None
    draws: int
    batch_size: int
    check: int | None = None
    recipe: Path | None = None

    @property
    def scores(self) -> dict[str, Path]:
        """Return the files of scores: of the answer first, then of what it is compared with."""
        return {name: self.run / "attribute" / name / "scores.safetensors" for name in ("influence", "similarity")}


@dataclass(frozen=True)
class Removal:
    """What a retraining of the check goes without.

    Args:
        name: Of its config and its folder.
        method: What chose it.
        exclude: The same as ``data.exclude`` has it.
        images: How many images that are.
    """

    name: str
    method: str
    exclude: Mapping[str, Any]
    images: int


@dataclass(frozen=True)
class Stage:
    """A stage: a verb and its configs, the later ones on top."""

    name: str
    verb: str
    configs: Sequence[Path]

    @property
    def words(self) -> list[str]:
        """Return the words of its command."""
        return [self.verb, *(word for path in self.configs for word in ("-c", str(path)))]


def measurements(question: Question) -> list[Stage]:
    """Return the stages that rank the images, in their order."""
    folder = question.run / CONFIGS
    return [
        Stage("curvature", "fit", [folder / "curvature.yaml"]),
        Stage("influence", "predict", [folder / "influence.yaml"]),
        Stage("similarity", "predict", [folder / "similarity.yaml"]),
    ]


def retrainings(removals: Iterable[Removal], question: Question) -> list[Stage]:
    """Return the stages of the check, in their order."""
    folder = question.run / CONFIGS / "without"
    return [
        Stage(f"without {each.name}", "fit", [_recipe(question), folder / f"{each.name}.yaml"]) for each in removals
    ]


def _recipe(question: Question) -> Path:
    assert question.recipe is not None
    return question.recipe


def removals_of(question: Question, query_ids: Sequence[int]) -> list[Removal]:
    """Return what the check goes without: the top of each query, and as many random images; nothing without a check."""
    if question.check is None:
        return []
    ranked = {"scores": str(question.scores["influence"]), "top": question.check}
    tops = [Removal(f"top-of-{query}", "influence", ranked | {"query": query}, question.check) for query in query_ids]
    return [*tops, random_removal(question.check)]


def random_removal(images: int) -> Removal:
    """Return the removal of so many random images."""
    return Removal(f"random-{images}", "random", {"random": images}, images)


def group_removal(grouping: str, group: str, images: int) -> Removal:
    """Return the removal of a group of so many images."""
    return Removal(folder_of(grouping, group), "group", {"grouping": grouping, "group": group}, images)


def check_files(question: Question, removals: Iterable[Removal]) -> dict[str, tuple[Path, Path]]:
    """Return what the check's retrainings write: without something, by its name, and without as many random images."""

    def file(name: str) -> Path:
        return question.run / "check" / name / "retraining.safetensors"

    chosen = [each for each in removals if each.method != "random"]
    return {each.name: (file(each.name), file(random_removal(each.images).name)) for each in chosen}


def configs(question: Question, removals: Iterable[Removal] = ()) -> dict[Path, dict[str, Any]]:
    """Return the config of every stage by the file that it belongs into."""
    folder = question.run / CONFIGS
    weights = {} if question.weights is None else {"weights": question.weights}
    method = {
        "class_path": "lightning_attr.methods.Influence",
        "init_args": {
            "curvature": str(question.run / "curvature" / "curvature.safetensors"),
            "damping": {"value": 0.1, "rule": "overall"},
            "captions": None,
            "output": {"draws": {"timesteps": question.draws}},
            **weights,
        },
    }
    similarity = {"class_path": "lightning_attr.methods.Similarity", "init_args": {"feature": "latent"}}
    found = {
        folder / "curvature.yaml": {
            "trainer": {"default_root_dir": str(question.run / "curvature"), "devices": 1, "max_epochs": 2 * PASSES},
            "checkpoint": {"every_n_train_steps": 50},
            "model": {
                "class_path": "lightning_attr.tasks.Curvature",
                "init_args": {"checkpoint": str(question.model), "kind": "ekfac", **weights},
            },
            "data": _data(question, {"order": "stored"}),
        },
        folder / "influence.yaml": _attribution(question, "influence", method),
        folder / "similarity.yaml": _attribution(question, "similarity", similarity),
    }
    return found | {folder / "without" / f"{each.name}.yaml": _retraining(question, each) for each in removals}


def _data(question: Question, settings: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"store": str(question.store), "batch_size": question.batch_size, **settings}
    return {"class_path": "datamodules.LatentDataModule", "init_args": settings}


def _attribution(question: Question, name: str, method: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trainer": {"default_root_dir": str(question.scores[name].parent), "devices": 1},
        "model": {
            "class_path": "lightning_attr.tasks.Attribution",
            "init_args": {
                "queries": str(question.queries),
                "checkpoints": [str(question.model)],
                "method": dict(method),
            },
        },
        "data": _data(question, {}),
    }


def _retraining(question: Question, removal: Removal) -> dict[str, Any]:
    return {
        "trainer": {"default_root_dir": str(question.run / "check" / removal.name), "devices": 1},
        "model": {
            "class_path": "lightning_attr.tasks.Retraining",
            "init_args": {
                "original": str(question.model),
                "queries": str(question.queries),
                "method": removal.method,
            },
        },
        "data": {"init_args": {"store": str(question.store), "exclude": {**NOTHING, **removal.exclude}}},
    }


def text(config: Mapping[str, Any]) -> str:
    """Return a config as YAML."""
    return yaml.safe_dump(dict(config), sort_keys=False)


def write(files: Mapping[Path, Mapping[str, Any]]) -> None:
    """Write configs; one that was written before must be the same.

    Raises:
        UserError: It is another one: the folder holds the answer to another question.
    """
    for path, config in files.items():
        if path.is_file() and path.read_bytes() != text(config).encode():
            raise UserError(
                f"{path}: found the config of another question, expected that of this one; choose another --out"
            )
    for path, config in files.items():
        if not path.is_file():
            write_atomically(path, text(config).encode())


def written_batch_size(run: Path) -> int | None:
    """Return the batch size that was chosen when the folder was begun; None where it is new."""
    path = run / CONFIGS / "influence.yaml"
    if not path.is_file():
        return None
    try:
        return int(yaml.safe_load(path.read_text())["data"]["init_args"]["batch_size"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: found no data.init_args.batch_size, expected the config of an answer") from error
