"""What a set is to be made of, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.store import Store
from lightning_attr.abc.set import GALLERY, CustomModel, check_models
from lightning_attr.commands.abc.stages import Stage
from lightning_attr.commands.abc.stores import check_alike
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError, expect_within, quoted

#: Images of one prompt, at most: all are planned before any is made.
MOST_IMAGES = 10_000


@dataclass(frozen=True)
class PlannedModel:
    """A model that is to be customised.

    Args:
        name: Its folder below ``models``: letters, digits and ``.+-_``.
        category: What its exemplars are, such as ``artist`` or ``object``.
        split: ``train``, ``validation`` or ``test``.
        exemplars: Ids of what it is customised on, in the store of exemplars.
        prompts: What it is asked for, by kind of prompt.
    """

    name: str
    category: str
    split: str
    exemplars: list[int]
    prompts: dict[str, list[str]]


@dataclass(frozen=True)
class Plan:
    """An AbC set that is to be made.

    Args:
        folder: Where everything goes; the set itself into ``set`` below it.
        distractors: The store that the base was trained on.
        exemplars: A store of images that the base never saw, made with the same encoders.
        train: The config files of a customisation, in order: a ``fit`` with ``model.base``.
        sample: Those of the queries: a ``predict`` of ``Sampler``.
        models: The models.
        images: How many images are made of each prompt.
        seed: The query with id i is sampled from seed + i.
    """

    folder: str
    distractors: str
    exemplars: str
    train: list[str]
    sample: list[str]
    models: list[PlannedModel]
    images: int = 5
    seed: int = 0

    @property
    def set_folder(self) -> Path:
        """Return the folder of the set."""
        return Path(self.folder) / "set"

    def folder_of(self, model: CustomModel) -> Path:
        """Return the folder of a model's runs."""
        return Path(self.folder) / "models" / model.name

    def checkpoint_of(self, model: CustomModel) -> Path:
        """Return the checkpoint of a model."""
        return self.folder_of(model) / "train" / "checkpoints" / "last.ckpt"

    def queries_of(self, model: CustomModel) -> Path:
        """Return the queries of a model, before they are those of the set."""
        return self.folder_of(model) / "sample" / "queries.lmdb"


def planned(plan: Plan) -> tuple[CustomModel, ...]:
    """Return the models as the set will have them, with ids of the gallery and of its queries.

    Exemplars follow the distractors: the one with id i has the last distractor's id + 1 + i in the gallery.

    Raises:
        UserError: The plan makes no sense.
    """
    expect_within("set.images", plan.images, 1, MOST_IMAGES)
    expect_within("set.seed", plan.seed, 0, 2**62)
    distractors, exemplars = Store(plan.distractors), Store(plan.exemplars)
    check_alike([distractors, exemplars])
    offset = int(distractors.ids[-1]) + 1
    made, queries = [], 0
    for model in plan.models:
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", model.name):
            raise UserError(f"set.models: found name {quoted(model.name)}, expected letters, digits and .+-_")
        exemplars.positions(model.exemplars)
        by_kind: dict[str, tuple[int, ...]] = {}
        for kind, prompts in model.prompts.items():
            by_kind[kind] = tuple(range(queries, queries + plan.images * len(prompts)))
            queries += len(by_kind[kind])
        own = tuple(offset + exemplar for exemplar in model.exemplars)
        made.append(CustomModel(model.name, model.category, model.split, own, by_kind))
    check_models(made)
    return tuple(made)


def with_checkpoint(plan: Plan, model: CustomModel) -> CustomModel:
    """Return a model that has been made, with the digest of its weights."""
    return replace(model, checkpoint=file_digest(plan.checkpoint_of(model)))


def prompts_of(plan: Plan, model: PlannedModel) -> list[str]:
    """Return the prompt of each query of a model, in the order of their ids."""
    return [prompt for prompts in model.prompts.values() for prompt in prompts for _ in range(plan.images)]


def stages(plan: Plan, models: tuple[CustomModel, ...]) -> Iterator[Stage]:
    """Yield the stages of all models: each is customised, and makes its queries."""
    gallery = str(plan.set_folder / GALLERY)
    for place, (model, said) in enumerate(zip(models, plan.models, strict=True), 1):
        name, folder = f"{model.name} ({place} of {len(models)})", plan.folder_of(model)
        data = {"store": gallery, "subset": {"ids": list(model.exemplars)}}
        yield Stage(f"{name}: train", "fit", plan.train, folder / "train", {"data": {"init_args": data}})
        sampler = {
            "checkpoint": str(plan.checkpoint_of(model)),
            "store": gallery,
            "prompts": prompts_of(plan, said),
            "prompt_store": None,
            "seed": plan.seed + model.query_ids[0],
        }
        yield Stage(f"{name}: sample", "predict", plan.sample, folder / "sample", {"model": {"init_args": sampler}})
