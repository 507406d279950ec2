"""Checkpoints that a kill cannot damage and that hold the last step exactly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.progress import _ProcessedTracker as ProcessedTracker
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lightning_attr.artifacts import whole_file
from lightning_attr.artifacts.checkpoint_files import read_checkpoint, with_digests
from lightning_attr.errors import UserError, expect_within
from lightning_attr.runs.ranks import gather
from lightning_attr.runs.restoring import Restoring, check_like

#: What Lightning needs of a checkpoint for its weights, and to go on from it.
RESTORED = ("state_dict", "pytorch-lightning_version")
RESUMED = (*RESTORED, "optimizer_states", "lr_schedulers", "loops", "global_step", "epoch")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: at any moment the old or the new one is whole.

    Reads without running code from the file.

    Args:
        resumes: Whether a checkpoint that is read is to be gone on from; else its weights alone are needed.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave the one that is there."""
        with whole_file(path) as file:
            torch.save(with_digests(checkpoint), file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; a damaged or malicious one is the user's error, with one message."""
        return read_to_resume(path, RESUMED if self.resumes else RESTORED)


def read_to_resume(path: Any, needed: Sequence[str] = RESUMED) -> dict[str, Any]:
    """Read the checkpoint of a training to go on from.

    Raises:
        UserError: There is none, or it holds less, such as the weights alone.
    """
    checkpoint = read_checkpoint(path)
    if missing := [part for part in needed if part not in checkpoint]:
        raise UserError(
            f"checkpoint {path}: found no {', '.join(missing)}, expected the checkpoint of a training; from weights "
            "alone, as GroupedRetraining writes them, none goes on: delete the folder to train anew"
        )
    return checkpoint


class RunCheckpoint(Checkpoint):
    """Keeps one checkpoint, ``last.ckpt``: every so many steps, after the last one, and when SIGTERM or Ctrl-C stops.

    It holds what Lightning leaves out: the gradients of a step that is under way, which are each rank's own until the
    step is taken, and that a validation is due. Every validation has a checkpoint before, so that a stop costs no
    training, and one after. There is none at other places, such as between the last batch and the end of an epoch:
    Lightning does not resume from all of them exactly.

    Args:
        dirpath: The folder; None is ``checkpoints`` in the run's folder.
        every_n_train_steps: Training steps between checkpoints, micro-batches included; a kill loses at most these.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 500) -> None:
        expect_within("checkpoint.every_n_train_steps", every_n_train_steps, 1)
        self.dirpath = dirpath
        self.every_n_train_steps = every_n_train_steps
        self._training = False
        self._validation_due = False
        self._gradients: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have the checkpoint checked that the run goes on from."""
        trainer._checkpoint_connector = Restoring(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the step and the validation that a stop cut off."""
        parameters = dict(pl_module.named_parameters())
        for name, gradient in self._gradients.items():
            parameters[name].grad = gradient.to(parameters[name].device)
        self._gradients = {}
        self._training = True
        if self._validation_due:
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mark the training's end: what follows it has files of its own."""
        self._training = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps, before what follows the last one, before a validation, and before a stop."""
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        _begin_epoch(trainer)
        self._validation_due = loop._should_check_val_fx(fetcher)
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        last = trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch)
        stop = trainer.received_sigterm  # the same on all ranks, as GracefulStop sees to
        if stop or last or self._validation_due or (loop.total_batch_idx + 1) % self.every_n_train_steps == 0:
            self._save(trainer)
        if stop:
            raise SIGTERMException

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save that the validation is not due any more."""
        if self._training:
            self._validation_due = False
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # points before a checkpoint must not be lost with the process
        folder = Path(self.dirpath) if self.dirpath is not None else Path(trainer.default_root_dir) / "checkpoints"
        trainer.save_checkpoint(folder / "last.ckpt")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what is under way."""
        checkpoint["validation_due"] = self._validation_due
        checkpoint["gradients"] = []
        if trainer.fit_loop._should_accumulate():
            gradients = {name: parameter.grad for name, parameter in pl_module.named_parameters()}
            own = {name: gradient.cpu() for name, gradient in gradients.items() if gradient is not None}
            checkpoint["gradients"] = gather(trainer, own)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what was under way until the training starts."""
        self._validation_due = checkpoint.get("validation_due", False)
        gradients = checkpoint.get("gradients") or [{}] * trainer.world_size
        weights = dict(pl_module.named_parameters())
        check_like("validation_due", self._validation_due, False)
        for own in gradients:
            check_like("gradients", own, {})
            check_like("gradients", own, {name: weights.get(name, "the name of a weight") for name in own})
        if len(gradients) != trainer.world_size:
            raise UserError(
                f"trainer.devices: found {trainer.world_size} ranks, expected {len(gradients)} as in the checkpoint, "
                "which was taken in the middle of an optimizer step"
            )
        self._gradients = gradients[trainer.global_rank]


def _begin_epoch(trainer: pl.Trainer) -> None:
    """Count the epoch that is under way as begun.

    Lightning does not where it resumed at the end of an epoch. A second stop at an end would then cost an epoch.
    """
    progress = trainer.fit_loop.epoch_progress
    for counts in (progress.total, progress.current):
        assert isinstance(counts, ProcessedTracker)
        counts.ready = counts.started = counts.completed + 1
        counts.processed = counts.completed
