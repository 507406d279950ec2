"""A fine-tuning of a tiny pipeline: its store, its queries, and the config of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_pipelines import WORDS, make_pipeline

from datamodules import Field, Meta, Sample, Schema, StoreWriter
from lightning_attr.encoders import AutoencoderKLEncoder, CLIPText


def write_store(path: Path, pipeline: Path, count: int = 10) -> Path:
    """A store of random images, encoded by a pipeline of SD 1.x."""
    image, text = AutoencoderKLEncoder(str(pipeline), pipeline=True), CLIPText(str(pipeline), pipeline=True)
    fields = {
        "latent": Field((1, *image.latent_shape(16)), "float32", "latent"),
        "text": Field((1, text.tokens, text.dim), "float32", "condition"),
    }
    schema = Schema(fields, {"image": image.config(), "text": text.config()})
    random = np.random.default_rng(0)
    with StoreWriter(path, schema) as writer:
        for number in range(count):
            pixels = random.integers(0, 255, (1, 16, 16, 3), dtype=np.uint8)
            caption = " ".join(random.choice(WORDS, 4))
            arrays = {
                "latent": image.encode(torch.from_numpy(pixels)).numpy(),
                "text": text.encode([caption])["text"].numpy(),
            }
            writer.write(Sample(Meta(number, (caption,), "", None, {}), arrays, b""))
        writer.finish()
    return path


class FineTune:
    """Configs under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pipeline = make_pipeline("sd1", root / "base")
        self.store = write_store(root / "train.lmdb", root / "base")

    def train(self, run: Path, trainer: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
        """The config of training, with validation where the trainer's settings say how often."""
        val_store = str(self.store) if "val_check_interval" in (trainer or {}) else None
        return {
            "trainer": {
                "default_root_dir": str(run),
                "accelerator": "cpu",
                "max_steps": 6,
                "logger": False,
                "callbacks": [{"class_path": "callbacks.EMA", "init_args": {"decay": 0.8}}],
                **(trainer or {}),
            },
            "checkpoint": {"every_n_train_steps": 2},
            "model": {
                "class_path": "lightning_attr.tasks.LatentDiffusion",
                "init_args": {
                    "base": {"model": str(self.root / "base"), "adapter": {"rank": 3, "alpha": 6.0}},
                    "learning_rate": 1e-2,
                    "validation": {"timesteps": 2},
                    **model,
                },
            },
            "data": {
                "class_path": "datamodules.LatentDataModule",
                "init_args": {"store": str(self.store), "batch_size": 4, "val_store": val_store},
            },
        }
