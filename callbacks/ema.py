"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_attr.errors import expect_within


class EMA(WeightAveraging):
    """Lightning's weight averaging with a fused update: checkpoints hold the average as ``state_dict``.

    Validation and everything after training use the average.

    Args:
        decay: Share of the old average kept at every step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        expect_within("callbacks.EMA.decay", decay, 0, 1)
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        self._swapped = False

    def on_validation_epoch_start(self, *args: Any) -> None:
        """Validate the average."""
        super().on_validation_epoch_start(*args)
        self._swapped = True

    def on_validation_epoch_end(self, *args: Any) -> None:
        """Go on with the current weights."""
        super().on_validation_epoch_end(*args)
        self._swapped = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Undo the exchange of a validation that was stopped, so that a checkpoint saved now is right."""
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)
