"""Going on from a checkpoint: what does not fit the run is refused in one line, before a step is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector as CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_attr.errors import UserError, one_line
from lightning_attr.weight_files import found_instead

#: What AdamW keeps of every weight.
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Restoring(CheckpointConnector):
    """Lightning's way to restore a run, with checks: it takes numbers of any kind, and fails on them later.

    The checkpoint's entries are compared with those that this run would write now.
    """

    def _restore_modules_and_callbacks(self, *args: Any, **settings: Any) -> None:
        with self._refusing():
            super()._restore_modules_and_callbacks(*args, **settings)

    def restore_model(self) -> None:
        """Take the state up, and check that it is this module's: PyTorch takes numbers of any type."""
        super().restore_model()
        if self._loaded_checkpoint:
            state, module = self._loaded_checkpoint.get("state_dict"), self.trainer.lightning_module
            # The tasks that are not strict leave the model out that they were given.
            own = {
                name: value
                for name, value in module.state_dict().items()
                if module.strict_loading or not name.startswith("denoiser.")
            }
            check_like("state_dict", state, own, complete=True)

    def restore_training_state(self) -> None:
        """Check the progress and the optimizers' states, and take them up."""
        with self._refusing():
            if self._loaded_checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
                self._check_training(self._loaded_checkpoint)
            super().restore_training_state()
            for optimizer in self.trainer.optimizers:
                for weight, state in optimizer.state.items():
                    _check_moments(weight, state, MOMENTS if isinstance(optimizer, torch.optim.AdamW) else ())

    def _check_training(self, checkpoint: Mapping[str, Any]) -> None:
        trainer = self.trainer
        now = {
            "loops": {"fit_loop": trainer.fit_loop.state_dict()},
            "optimizer_states": [{**optimizer.state_dict(), "state": {}} for optimizer in trainer.optimizers],
            "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        }
        for key, value in now.items():
            check_like(key, checkpoint.get(key), value)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            message = str(error)
            raise error if "checkpoint" in message else UserError(f"checkpoint {self._ckpt_path}: {message}") from error
        except Exception as error:  # what Lightning and torch make of other contents is their own
            raise UserError(f"checkpoint {self._ckpt_path}: does not fit this run: {one_line(error)}") from error


def _check_moments(weight: Tensor, state: Any, names: Sequence[str]) -> None:
    """Check an optimizer's state of one weight: tensors of its shape, or of one number."""
    if not isinstance(state, Mapping):
        raise UserError(f"optimizer_states: found {type(state).__name__}, expected a mapping")
    for name in {**dict.fromkeys(names), **state}:
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape not in (weight.shape, ()):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"optimizer_states: found {name} {found}, expected {tuple(weight.shape)}")


def check_like(key: str, found: Any, expected: Any, complete: bool = False) -> None:
    """Check that a nested value is of the form of another one.

    Args:
        key: Where it stands, for messages.
        found: The value.
        expected: The other one. Tensors have its shape, or one number; numbers are numbers, and not negative.
        complete: Whether it must have all entries of the other one.

    Raises:
        UserError: It is not.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            raise UserError(f"{key}: found {type(found).__name__}, expected a mapping")
        for name, value in expected.items():
            if name in found:
                check_like(f"{key}.{name}", found[name], value)
            elif complete:
                raise UserError(f"{key}.{name}: missing, expected as this run has it")
    elif isinstance(expected, Tensor):
        _check_tensor(key, found, expected)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            raise UserError(f"{key}: found {type(found).__name__}, expected {len(expected)} entries")
        for place, (each, value) in enumerate(zip(found, expected, strict=True)):
            check_like(f"{key}.{place}", each, value)
    elif isinstance(expected, bool | str):
        if not isinstance(found, type(expected)):
            raise UserError(f"{key}: found {found!r}, expected such as {expected!r}")
    elif isinstance(expected, int | float):
        numbers = int if isinstance(expected, int) and "param_groups" not in key else int | float
        if isinstance(found, bool) or not isinstance(found, numbers) or not found >= 0:
            raise UserError(f"{key}: found {found!r}, expected a number such as {expected!r}")


def _check_tensor(key: str, found: Any, expected: Tensor) -> None:
    if expected.is_floating_point():
        instead = found_instead(found)
    else:
        same = isinstance(found, Tensor) and found.dtype == expected.dtype
        instead = None if same else type(found).__name__
    if instead is not None:
        raise UserError(f"{key}: found {instead}, expected a tensor of {expected.dtype}")
    if found.shape != expected.shape:
        raise UserError(f"{key}: found a tensor of shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
