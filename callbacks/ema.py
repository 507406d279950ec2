"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_attr.errors import expect_within


class EMA(WeightAveraging):
    """Lightning's weight averaging with a fused update: checkpoints hold the average as ``state_dict``.

    Validation and everything after training use the average. What is frozen, such as the base of a fine-tuning, has no
    average: it would be a second copy.

    Args:
        decay: Share of the old average kept at every step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        expect_within("callbacks.EMA.decay", decay, 0, 1)
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        self.decay = decay
        self._swapped = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin with the weights as they are."""
        if stage == "fit":
            self._part = trained_part(pl_module)
            self._average_model = AveragedModel(
                self._part, self._device or pl_module.device, use_buffers=self._use_buffers, **self._kwargs
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights in after a step."""
        super().on_train_batch_end(trainer, self._part, outputs, batch, batch_idx)  # type: ignore[arg-type]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average and the weights up; a checkpoint is completed by what is frozen before it comes here."""
        if self._average_model is not None and self._part is not pl_module:
            own = self._part.state_dict()
            averaged = {name: value for name, value in checkpoint["state_dict"].items() if name in own}
            checkpoint = {**checkpoint, "state_dict": averaged}
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        super()._swap_models(self._part)  # type: ignore[arg-type]

    def _copy_average_to_current(self, pl_module: pl.LightningModule) -> None:
        super()._copy_average_to_current(self._part)  # type: ignore[arg-type]

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


def trained_part(module: nn.Module) -> nn.Module:
    """Return a module, or, where some of it is frozen, one that holds its other parameters under the same names."""
    named = dict(module.named_parameters())
    if all(weight.requires_grad for weight in named.values()):
        return module
    result = nn.Module()
    for name, weight in named.items():
        if weight.requires_grad:
            *path, last = name.split(".")
            at = result
            for part in path:
                if part not in dict(at.named_children()):
                    at.add_module(part, nn.Module())
                at = at.get_submodule(part)
            at.register_parameter(last, weight)
    return result
