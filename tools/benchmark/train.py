"""Training steps of ``LatentDiffusion`` as the command line runs them, against a bare loop of the same steps.

The bare loop has all that changes the weights or their average: the same network, optimizer, warm-up, noise, caption
dropout, clipping of gradients, and moving average, on batches of the same loader. It has no Trainer, no callbacks, no
TensorBoard, no check that the loss is finite, and no checkpoints. Validation, sample grids and checkpoints are left out
on the other side as well: they come every few hundred steps, and take what they take in any loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datamodules import Store
from datamodules.loading import Batch, Keys, LatentLoader, TrainBatches
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.encoders import store_text_encoder
from lightning_attr.models import build
from tools.benchmark.timing import Figure, Sizes, Timed, ratio, seconds

CONFIG = Path(__file__).parents[2] / "configs" / "shapes" / "train.yaml"


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure whole epochs of the training on shapes."""
    store = folder / "train.lmdb"
    prepare_shapes(["--out", str(store), "--count", str(sizes.trained), "--planted", "0"])
    config = yaml.safe_load(CONFIG.read_text())
    lightning, bare = _lightning(folder, store, config, sizes.epochs), _bare(store, config, sizes.epochs)
    value = ratio(lightning, bare, sizes.repeats)
    yield Figure("train_step_vs_bare", value, "the network; then Trainer, callbacks and logging, per step", 0.95)


class EpochClock(Callback):
    """Times training from the end of the first epoch's last step to the end of the last step, before its checkpoint."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Look at the clock."""
        if trainer.is_last_batch and trainer.current_epoch == 0:
            self._start = perf_counter()
        if trainer.global_step == trainer.max_steps:
            self.seconds = perf_counter() - self._start


def _lightning(folder: Path, store: Path, config: dict[str, Any], epochs: int) -> Timed:
    """Return the timing of so many epochs of a run after its first."""
    runs = count()
    batch_size = config["data"]["init_args"]["batch_size"]
    steps = -(-len(Store(store)) // batch_size) * (epochs + 1)

    def run() -> float:
        stage = run_stage(
            [
                "fit",
                "--config", str(CONFIG),
                "--trainer.default_root_dir", str(folder / f"run-{next(runs)}"),
                "--trainer.max_steps", str(steps),
                "--trainer.limit_val_batches", "0",
                "--trainer.callbacks+", f"{EpochClock.__module__}.{EpochClock.__name__}",
                "--checkpoint.every_n_train_steps", str(steps + 1),
                "--data.init_args.store", str(store),
                "--data.init_args.val_store", "null",
            ]
        )  # fmt: skip
        callbacks = stage.trainer.callbacks  # type: ignore[attr-defined]
        (clock,) = (found for found in callbacks if isinstance(found, EpochClock))
        return clock.seconds

    return run


def _bare(path: Path, config: dict[str, Any], epochs: int) -> Timed:
    """Return the timing of so many epochs of the bare loop."""
    store = Store(path)
    positions = np.arange(len(store))
    keys = Keys(store.ids, positions, config["data"]["init_args"]["batch_size"], "shuffled")
    loader = LatentLoader(TrainBatches(store, seed=0), keys)
    steps = BareSteps(config, store)

    def run() -> None:
        for epoch in range(epochs):
            keys.set_epoch(epoch)
            for batch in loader:
                steps(batch)

    return seconds(run)


class BareSteps:
    """Training steps as one would write them without Lightning."""

    def __init__(self, config: dict[str, Any], store: Store) -> None:
        model = config["model"]["init_args"]
        self.model = build(model["denoiser"], model["scheduler"])
        self.network = self.model.network
        self.null_text = store_text_encoder(store).encode([""])["text"]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), model["learning_rate"], weight_decay=0.0, fused=True
        )
        warmup = model["warmup_steps"]
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))
        (decay,) = (
            callback["init_args"]["decay"]
            for callback in config["trainer"]["callbacks"]
            if callback["class_path"] == "callbacks.EMA"
        )
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        self.clip = config["trainer"]["gradient_clip_val"]

    def __call__(self, batch: Batch) -> None:
        """Take one step."""
        latent = batch["latent"]
        noise = torch.randn_like(latent)
        timesteps = torch.randint(self.model.process.levels, (len(latent),))
        text = torch.where((torch.rand(len(latent)) < 0.1)[:, None, None], self.null_text, batch["text"])
        loss = self.model.losses(latent, {"text": text}, timesteps, noise).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.rate.step()
        self.average.update_parameters(self.network)
