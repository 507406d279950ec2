"""SIGTERM, Ctrl-C and a terminal that closes stop a run so that the same command goes on from there."""

from __future__ import annotations

import signal
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_attr.console import err, noticed, signals


class GracefulStop(Callback):
    """Raises Lightning's ``SIGTERMException`` for SIGTERM, Ctrl-C and SIGHUP; its ``code`` is the status to exit with.

    While a model trains, at the end of the batch, where Lightning does so: in the middle of an optimizer step, weights
    are those of no uninterrupted run. All ranks stop at the same batch, whichever of them got the signal. Elsewhere at
    once: files are written whole or not at all, and what is done stays.
    """

    def __init__(self) -> None:
        self._training = False
        self._requested = False
        self._status = 128 + signal.SIGTERM
        self._previous: dict[signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over the signals."""
        self._previous = {number: signal.signal(number, self._stop) for number in signals()}
        # Lightning puts a handler of its own in front while its loops run. It waits for the other ranks wherever the
        # signal finds it: ranks that are in the middle of another exchange would wait for each other for ever.
        trainer._signal_connector._sigterm_notifier_fn = self._stop  # type: ignore[method-assign,assignment]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the end of the batch from here on."""
        self._training = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Let all ranks stop here if one of them is to."""
        self._agree(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Let all ranks stop here if one of them is to."""
        if self._training:
            self._agree(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once from here on."""
        self._agree(trainer)
        self._training = False
        if trainer.received_sigterm:  # after Lightning looked for the last time
            raise SIGTERMException(self._status)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back, Lightning's first: it would put ours in place again."""
        if isinstance(exception, SIGTERMException):
            exception.code = self._status  # Lightning's own has none
        trainer._signal_connector.teardown()
        self._restore()

    def _agree(self, trainer: pl.Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._requested, all=False):
            trainer._signal_connector.received_sigterm = True

    def _stop(self, signum: int, frame: object) -> None:
        self._status = 128 + signum
        if not self._training:
            noticed.append(signum)
            raise SIGTERMException(self._status)
        self._requested = True
        if signum == signal.SIGINT:
            err.print("stopping after this batch; press Ctrl-C again to stop at once")
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
