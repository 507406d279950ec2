"""Ctrl-C stops a run as SIGTERM does: after the batch under way, with a checkpoint."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_attr.console import err


class GracefulStop(Callback):
    """The first Ctrl-C asks Lightning to stop at the end of the batch, a second one ends the process at once.

    A KeyboardInterrupt in the middle of an optimizer step would leave weights that no uninterrupted run has.
    """

    def __init__(self) -> None:
        self._previous: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over Ctrl-C."""
        self._previous = signal.signal(signal.SIGINT, self._stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def _stop(self, signum: int, frame: object) -> None:
        err.print("stopping after this batch; press Ctrl-C again to stop at once", markup=False)
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
