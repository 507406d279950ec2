"""The diagonal Fisher: the mean square of true per-sample gradients (AbU, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.errors import UserError
from lightning_attr.artifacts import load_tensors, save_tensors


@dataclass(frozen=True)
class Damping:
    """What is added to the curvature before it is inverted.

    Args:
        value: The amount.
        rule: ``fixed``: the amount itself. ``mean``: that fraction of the mean entry of each weight.
    """

    value: float = 0.0
    rule: Literal["fixed", "mean"] = "fixed"

    def of(self, entries: Tensor) -> Tensor:
        """Return the damping of one weight with curvature ``entries``, a scalar."""
        scale = entries.mean() if self.rule == "mean" else entries.new_ones(())
        return self.value * scale


@dataclass(frozen=True)
class DiagonalCurvature:
    """The diagonal Fisher of the selected weights.

    Attributes:
        fisher: Mean squared per-sample gradient by weight name, float64, shaped as the weight.
        settings: How it was fitted: weights, draws, count, digests.
    """

    fisher: Mapping[str, Tensor]
    settings: Mapping[str, Any]

    def inverse(self, gradients: Mapping[str, Tensor], damping: Damping) -> dict[str, Tensor]:
        """Return ``(F + damping)^-1 g`` for every named gradient, in the gradient's type.

        Raises:
            UserError: A weight has no curvature here, or zero entries and no damping.
        """
        return {name: self._inverse(name, gradient, damping) for name, gradient in gradients.items()}

    def _inverse(self, name: str, gradient: Tensor, damping: Damping) -> Tensor:
        if name not in self.fisher:
            raise UserError(
                f"curvature: found none for {name}, it was fitted on weights {self.settings.get('weights')!r}"
            )
        entries = self.fisher[name].to(gradient.device)
        if entries.shape != gradient.shape:
            shapes = f"found {name} {tuple(entries.shape)}, expected {tuple(gradient.shape)}"
            raise UserError(f"curvature: of another architecture: {shapes}")
        damped = entries + damping.of(entries)
        if not bool((damped > 0).all()):
            zeros = int((damped <= 0).sum())
            raise UserError(f"curvature: {zeros} entries of {name} are zero; set a damping above 0")
        return (gradient / damped).to(gradient.dtype)

    def save(self, path: str | Path) -> None:
        """Write ``curvature.safetensors``."""
        save_tensors(path, self.fisher, {**self.settings, "kind": "diagonal"})

    @classmethod
    def load(cls, path: str | Path) -> DiagonalCurvature:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: The file is missing, damaged or holds something else.
        """
        fisher, settings = load_tensors(path)
        if settings.get("kind") != "diagonal":
            raise UserError(f"{path}: found kind {settings.get('kind')!r}, expected a diagonal curvature")
        return cls(fisher, settings)


def squared_sums(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum over samples of the squared gradients, float64, by name."""
    return {name: gradient.to(torch.float64).square().sum(0) for name, gradient in gradients.items()}
