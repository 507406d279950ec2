"""A plan of an AbC set over the miniature project: held-out shapes are exemplars of three tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from miniature import Project

PROMPTS = {"thing": ["a red star", "a blue circle"], "scene": ["a star on a yellow background"]}
MODELS = (
    ("a-1", "artist", "train", [40, 45, 47]),
    ("a-2", "artist", "test", [52, 53]),
    ("o-1", "object", "test", [59]),
)


class Planned:
    """The configs of a plan under one folder.

    Args:
        root: Where they go, and the set.
        project: Whose model is the base.
    """

    def __init__(self, root: Path, project: Project) -> None:
        self.root = root
        self.folder = root / "abc"
        self.plan = root / "make.yaml"
        trainer = {"accelerator": "cpu", "logger": False}
        base = {"model": str(project.checkpoint), "adapter": {"rank": 2}}
        data = {"store": "overridden", "batch_size": 2}
        self.train = self.write(
            "train",
            {
                "trainer": {**trainer, "max_steps": 4},
                "checkpoint": {"every_n_train_steps": 1},
                "model": {
                    "class_path": "lightning_attr.tasks.LatentDiffusion",
                    "init_args": {"base": base, "learning_rate": 1e-2},
                },
                "data": {"class_path": "datamodules.LatentDataModule", "init_args": data},
            },
        )
        self.sample = self.write(
            "sample",
            {
                "trainer": trainer,
                "model": {
                    "class_path": "lightning_attr.tasks.Sampler",
                    "init_args": {
                        "checkpoint": "overridden",
                        "store": "overridden",
                        "prompts": ["overridden"],
                        "steps": 2,
                        "batch_size": 4,
                    },
                },
            },
        )
        self.write("make", self.config(project))

    def write(self, name: str, config: dict[str, Any]) -> str:
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return str(path)

    def config(self, project: Project, **settings: Any) -> dict[str, Any]:
        models = [
            {"name": name, "category": category, "split": split, "exemplars": ids, "prompts": PROMPTS}
            for name, category, split, ids in MODELS
        ]
        return {
            "set": {
                "folder": str(self.folder),
                "distractors": str(project.store),
                "exemplars": str(project.val_store),
                "train": [self.train],
                "sample": [self.sample],
                "images": 2,
                "seed": 100,
                "models": models,
                **settings,
            }
        }
