"""The last steps of a training, as they were taken: what going back through them needs, one file for each.

A step of AdamW is ``w <- kept w - rates m``, where ``m`` averages the gradients of the batches, shortened where they
were clipped. ``callbacks.Trajectory`` writes the files, and :class:`~lightning_attr.tasks.ReplayedSteps` reads them.

Shapes: weights and their rates are [*shape] by the name of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.expect import expect_settings
from lightning_attr.errors import UserError

KIND = "training step"

#: The settings of a file, and their types.
SETTINGS: Mapping[str, type] = {
    "epoch": int, "batch": int, "clipped": float, "kept": float, "beta": float, "average": float, "training": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of a training.

    Attributes:
        weights: Before the step.
        rates: What the average of the gradients is multiplied by: the learning rate times Adam's diagonal.
        epoch: The number of the epoch.
        batch: The number of the batch in its epoch.
        clipped: What clipping left of the gradients.
        kept: What weight decay left of the weights.
        beta: Share of the old average of gradients in the new one.
        average: Share of the old average of weights in the new one; 0 where none was kept.
        training: What the batches depend on, the same for all steps: the order of the samples (``order``), the ``seed``
            and ``caption_dropout`` of the task, and the ``digests`` of the store.
    """

    weights: Mapping[str, Tensor]
    rates: Mapping[str, Tensor]
    epoch: int
    batch: int
    clipped: float
    kept: float
    beta: float
    average: float
    training: Mapping[str, Any]

    def save(self, run: Path, number: int) -> None:
        """Write the file of a step."""
        tensors = {f"weights.{name}": value for name, value in self.weights.items()}
        tensors |= {f"rates.{name}": value for name, value in self.rates.items()}
        save_tensors(path_of(run, number), KIND, tensors, {name: getattr(self, name) for name in SETTINGS})

    @classmethod
    def load(cls, run: str | Path, number: int) -> Step:
        """Read the file of a step.

        Raises:
            UserError: It is not there, damaged, or of something else.
        """
        path = cls.expect(run, number)
        tensors, settings = load_tensors(path, KIND)
        expect_settings(str(path), settings, SETTINGS)
        weights, rates = (
            {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
            for part in ("weights.", "rates.")
        )
        shapes = [{name: value.shape for name, value in tensors.items()} for tensors in (weights, rates)]
        if not weights or shapes[0] != shapes[1]:
            raise UserError(f"{path}: found weights and rates that do not belong together, expected one of each")
        return cls(weights, rates, **{name: settings[name] for name in SETTINGS})

    @staticmethod
    def expect(run: str | Path, number: int) -> Path:
        """Return the file of a step.

        Raises:
            UserError: It is not there.
        """
        if not (path := path_of(run, number)).is_file():
            raise UserError(
                f"{path}: no such file; go back through fewer steps (trainer.max_steps), or train with more of them "
                "in callbacks.Trajectory"
            )
        return path


def path_of(run: str | Path, number: int) -> Path:
    """Return the file of a step of a run, which are counted from 1."""
    return Path(run) / "trajectory" / f"{number:08d}.safetensors"


def steps_of(run: str | Path) -> int:
    """Return the number of the last step that was kept.

    Raises:
        UserError: There is none.
    """
    numbers = [int(path.stem) for path in path_of(run, 0).parent.glob("*.safetensors") if path.stem.isdecimal()]
    if not numbers:
        raise UserError(
            f"{run}: found no steps in trajectory/, expected the run of a training with callbacks.Trajectory"
        )
    return max(numbers)
