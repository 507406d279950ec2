"""The trainer's settings make sense, and a run that counts as finished has done all of its work."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.connector import _convert_precision_to_unified_args

from lightning_attr.errors import UserError, expect_within

#: The least of numbers of which Lightning takes others without a word, or fails on in the middle of a run.
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 1,
    "max_steps": -1,
    "max_epochs": -1,
    "min_steps": 0,
    "min_epochs": 0,
    "num_nodes": 1,
}
#: Steps in the precision of the settings, with weights in float32.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_trainer(verb: str, trainer: Any) -> None:
    """Check the trainer's settings.

    Args:
        verb: Of the run.
        trainer: The trainer's settings.

    Raises:
        UserError: A number makes no sense, or :func:`check_whole` finds something.
    """
    for key, least in LEAST.items():
        expect_within(f"trainer.{key}", trainer[key], least)
    for key in ("limit_train_batches", "val_check_interval"):
        value = trainer[key]
        if isinstance(value, int | float) and not (value > 0 and (isinstance(value, int) or value <= 1)):
            raise UserError(
                f"trainer.{key}: found {value}, expected a whole number of batches, or a share above 0 to 1.0"
            )
    check_precision(trainer)
    check_whole(verb, trainer)


def check_precision(trainer: Any) -> None:
    """Check that the weights are in float32, and that the device knows the precision of the steps.

    Raises:
        UserError: Noise, losses and gradients would be rounded to 8 or 11 bits, or Lightning would take another one.
    """
    if (precision := trainer.precision) is None:
        return
    precision = _convert_precision_to_unified_args(precision)
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision: found {trainer.precision}, expected one of {', '.join(PRECISIONS)}")
    cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if precision == "16-mixed" and cpu:
        raise UserError("trainer.precision: found 16-mixed on a CPU, expected bf16-mixed or 32-true")


def check_whole(verb: str, trainer: Any) -> None:
    """Refuse settings by which a run would end with a part of its work, and count as finished, or never end.

    Args:
        verb: Of the run.
        trainer: The trainer's settings.

    Raises:
        UserError: There is one.
    """
    if trainer.max_time is not None:
        raise UserError(
            f"trainer.max_time: found {trainer.max_time}, expected none: a run that it cuts short would count as "
            "finished; stop it by SIGTERM instead (`timeout -s TERM 1h lightning-attr ...`), and give it again"
        )
    if trainer.fast_dev_run:
        raise UserError(
            f"trainer.fast_dev_run: found {trainer.fast_dev_run}, expected false: the run would count as finished; "
            "set trainer.max_steps and a folder of its own instead"
        )
    if verb in ("predict", "test"):
        expect_all_batches(f"trainer.limit_{verb}_batches", trainer[f"limit_{verb}_batches"])
    if trainer.overfit_batches:
        raise UserError(
            f"trainer.overfit_batches: found {trainer.overfit_batches}, expected 0: for a part of the samples set "
            "data.subset, or trainer.limit_train_batches"
        )
    if verb == "fit":
        limits = {name: trainer[name] for name in ("max_steps", "max_epochs")}
        if 0 in limits.values() or set(limits.values()) <= {-1, None}:
            raise UserError(f"trainer: found {limits}, expected at least one step, and an end")


def expect_all_batches(key: str, limit: float | None) -> None:
    """Check a limit of a trainer's batches, of which an integer is a number, and a fraction a share.

    Raises:
        UserError: It leaves batches out.
    """
    if limit is not None and (isinstance(limit, int) or limit != 1.0):
        raise UserError(f"{key}: found {limit}, expected all of them, 1.0: the rest would count as done")
