"""Keep the last steps of a training, so that influence can be carried back through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from callbacks.ema import EMA
from datamodules.loading import LatentLoader
from lightning_attr.errors import UserError, expect_within
from lightning_attr.second_moments import adam_diagonal, debiased_second_moment
from lightning_attr.tasks.latent_diffusion import LatentDiffusion
from lightning_attr.trajectory import Step


class Trajectory(Callback):
    """Writes the last steps of a training into ``trajectory/`` in its run's folder, for ``ReplayedSteps``.

    A training is the same bits each time it is run, so that it can be kept afterwards as well: by the same config, with
    this callback, in another folder. A step takes eight bytes for each weight that is trained.

    Args:
        steps: How many.
    """

    def __init__(self, steps: int) -> None:
        expect_within("callbacks.Trajectory.steps", steps, 1)
        self.steps = steps
        self._begun: tuple[dict[str, Tensor], float, Tensor] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what takes no steps of AdamW, or several batches for one."""
        if not isinstance(pl_module, LatentDiffusion):
            raise UserError(f"callbacks: Trajectory found {type(pl_module).__name__}, expected LatentDiffusion")
        if (found := trainer.accumulate_grad_batches) != 1:
            raise UserError(f"trainer.accumulate_grad_batches: found {found}, expected 1 with callbacks.Trajectory")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the weights, and the learning rate and the length of the gradient as they are before clipping."""
        assert isinstance(pl_module, LatentDiffusion)
        if trainer.global_step >= trainer.estimated_stepping_batches - self.steps:
            weights = {name: weight.detach().clone() for name, weight in pl_module.trained().items()}
            self._begun = weights, float(optimizer.param_groups[0]["lr"]), _length(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step that was taken."""
        if self._begun is None:
            return
        assert isinstance(pl_module, LatentDiffusion)
        (weights, learning_rate, length), self._begun = self._begun, None
        optimizer = trainer.optimizers[0]
        group, state = optimizer.param_groups[0], optimizer.state
        moments = {name: debiased_second_moment(state[weight], group) for name, weight in pl_module.trained().items()}
        number = int(trainer.global_step)
        # Adam divides its average of gradients by what the average of ones would be.
        rate = learning_rate / (1 - group["betas"][0] ** number)
        averages = [callback.decay for callback in trainer.callbacks if isinstance(callback, EMA)]  # type: ignore[attr-defined]
        step = Step(
            weights=weights,
            rates={  # a weight that the loss does not depend on has no moments, and takes no step
                name: torch.zeros_like(weights[name]) if each is None else rate * adam_diagonal(each, group["eps"])
                for name, each in moments.items()
            },
            epoch=trainer.current_epoch,
            batch=batch_idx,
            clipped=float(_length(pl_module) / length) if length > 0 else 1.0,
            kept=1 - learning_rate * group["weight_decay"],
            beta=float(group["betas"][0]),
            average=float(averages[0]) if averages else 0.0,
            training=_training(trainer, pl_module),
        )
        if trainer.is_global_zero:
            step.save(Path(trainer.default_root_dir), number)


def _training(trainer: pl.Trainer, task: LatentDiffusion) -> dict[str, Any]:
    loader = trainer.train_dataloader
    assert isinstance(loader, LatentLoader)
    return {
        "order": loader.sampler.settings(),
        "seed": task.seed,
        "caption_dropout": task.caption_dropout,
        "digests": {"store": task.model.made_from["store"]},
    }


def _length(task: LatentDiffusion) -> Tensor:
    """Return the norm of all gradients together."""
    gradients = [weight.grad for weight in task.trained().values() if weight.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
