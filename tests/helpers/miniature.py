"""A project in miniature: its stores, and the config of every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

DENOISER = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "mid_block_type": None,
    "up_block_types": ["UpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}


class Project:
    """Configs and finished runs under one folder; `args` gives the command of a stage with other settings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "train.lmdb"
        self.val_store = root / "val.lmdb"
        self.checkpoint = root / "train/checkpoints/last.ckpt"
        self.queries = root / "sample/queries.lmdb"
        self.curvature = root / "curvature/curvature.safetensors"
        self.scores = root / "unlearn/scores.safetensors"
        for name, config in self.configs().items():
            (root / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def args(self, stage: str, run: Path | None = None, **overrides: Any) -> list[str]:
        """Arguments of a stage; ``trainer__max_steps=3`` overrides ``trainer.max_steps``."""
        verb = {"sample": "predict", "similarity": "predict", "evaluate": "test"}.get(stage, "fit")
        files = ["train", "leave_k_out"] if stage == "leave_k_out" else [stage]
        result = [verb, *(word for file in files for word in ("-c", str(self.root / f"{file}.yaml")))]
        if run is not None:
            overrides = {"trainer__default_root_dir": run, **overrides}
        for key, value in overrides.items():
            result += [f"--{key.replace('__', '.')}", str(value)]
        return result

    def recorder(self, base: Path) -> str:
        """Callbacks of unlearning with another file of losses before."""
        callbacks = self.configs()["unlearn"]["trainer"]["callbacks"]
        callbacks[0]["init_args"]["base"] = str(base)
        return json.dumps(callbacks)

    def configs(self) -> dict[str, dict[str, Any]]:
        """Config of every stage."""
        return {
            "train": {
                "trainer": {
                    **self._trainer("train", max_steps=12),
                    "check_val_every_n_epoch": None,
                    "val_check_interval": 4,
                    "gradient_clip_val": 1.0,
                    "log_every_n_steps": 1,
                    "callbacks": [{"class_path": "callbacks.EMA", "init_args": {"decay": 0.8}}],
                },
                "checkpoint": {"every_n_train_steps": 2},
                "model": {
                    "class_path": "lightning_attr.tasks.LatentDiffusion",
                    "init_args": {
                        "denoiser": dict(DENOISER),  # a test may spoil its copy
                        "scheduler": {"num_train_timesteps": 1000, "clip_sample": False},
                        "learning_rate": 1e-3,
                        "warmup_steps": 3,
                        "validation": {"timesteps": 2},
                    },
                },
                "data": self._data(batch_size=8, val_store=str(self.val_store)),
            },
            "sample": {
                "trainer": self._trainer("sample"),
                "model": {
                    "class_path": "lightning_attr.tasks.Sampler",
                    "init_args": {
                        "checkpoint": str(self.checkpoint),
                        "store": str(self.store),
                        "prompts": ["a purple star", "a red circle", "a blue square", "a purple star", "a star"],
                        "steps": 3,
                        "batch_size": 2,
                    },
                },
            },
            "curvature": {
                "trainer": self._trainer("curvature", max_epochs=2),
                "checkpoint": {"every_n_train_steps": 2},
                "model": {
                    "class_path": "lightning_attr.tasks.Curvature",
                    "init_args": {"checkpoint": str(self.checkpoint)},
                },
                "data": self._data(batch_size=8, order="stored"),
            },
            "unlearn": {
                "trainer": {
                    **self._trainer("unlearn", max_steps=3),
                    "callbacks": [
                        {
                            "class_path": "callbacks.LossDeltaRecorder",
                            "init_args": {
                                "base": str(self.root / "base_losses.safetensors"),
                                "captions": 1,
                                "draws": {"timesteps": 1},
                                "batch_size": 2,
                            },
                        }
                    ],
                },
                "checkpoint": {"every_n_train_steps": 1},
                "model": {
                    "class_path": "lightning_attr.tasks.Unlearning",
                    "init_args": {
                        "checkpoint": str(self.checkpoint),
                        "store": str(self.store),
                        "queries": str(self.queries),
                        "query": 0,
                        "curvature": str(self.curvature),
                        "damping": {"value": 0.1, "rule": "mean"},
                        "draws": {"timesteps": 5, "mode": "own"},
                        "batch_size": 2,
                    },
                },
            },
            "similarity": {
                "trainer": self._trainer("similarity"),
                "model": {
                    "class_path": "lightning_attr.tasks.Attribution",
                    "init_args": {
                        "queries": str(self.queries),
                        "method": {"class_path": "lightning_attr.methods.Similarity"},
                    },
                },
                "data": self._data(batch_size=16),
            },
            "leave_k_out": {
                "trainer": {"default_root_dir": str(self.root / "leave_k_out")},
                "model": {
                    "class_path": "lightning_attr.tasks.Retraining",
                    "init_args": {
                        "original": str(self.checkpoint),
                        "queries": str(self.queries),
                        "evaluation": {"timesteps": 4},
                    },
                },
                "data": {"init_args": {"exclude": {"scores": str(self.scores), "top": 4}}},
            },
            "evaluate": {
                "trainer": self._trainer("evaluate"),
                "model": {
                    "class_path": "lightning_attr.tasks.Evaluation",
                    "init_args": {
                        "retrained": [str(self.root / "leave_k_out")],
                        "scores": [str(self.scores), str(self.root / "similarity/scores.safetensors")],
                        "relevant": {"store": str(self.store), "attribute": "planted", "k": [4]},
                    },
                },
            },
        }

    def _trainer(self, name: str, **settings: Any) -> dict[str, Any]:
        return {"default_root_dir": str(self.root / name), "accelerator": "cpu", **settings}

    def _data(self, **settings: Any) -> dict[str, Any]:
        init_args = {"store": str(self.store), **settings}
        return {"class_path": "datamodules.LatentDataModule", "init_args": init_args}
