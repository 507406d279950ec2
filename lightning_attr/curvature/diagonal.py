"""The diagonal Fisher: the mean square of true per-sample gradients (AbU, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_attr.artifacts import save_tensors
from lightning_attr.curvature.damping import Damping
from lightning_attr.curvature.errors import check_shape, missing


@dataclass(frozen=True)
class DiagonalCurvature:
    """The diagonal Fisher of the selected weights.

    Attributes:
        fisher: Mean squared per-sample gradient by weight name, float64, shaped as the weight.
        settings: How it was fitted: weights, draws, count, digests.
    """

    fisher: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    kind: ClassVar[str] = "diagonal"

    def inverse(self, gradients: Mapping[str, Tensor], damping: Damping) -> dict[str, Tensor]:
        """Return ``(F + damping)^-1 g`` for every named gradient, in the gradient's type.

        Args:
            gradients: [..., *shape] by weight name; any leading axes.
            damping: Added to the diagonal.

        Raises:
            UserError: A weight has no curvature here, or zero entries and no damping.
        """
        for name in gradients:
            if name not in self.fisher:
                raise missing(name, self.settings)
        settled = damping.settled([self.fisher[name] for name in gradients])
        return {name: self._inverse(name, gradient, settled) for name, gradient in gradients.items()}

    def _inverse(self, name: str, gradient: Tensor, damping: Damping) -> Tensor:
        entries = self.fisher[name].to(gradient.device)
        check_shape(name, gradient, entries.shape)
        return (gradient / damping.added(entries, f"entries of {name}")).to(gradient.dtype)

    def finite(self) -> bool:
        """Return whether all entries are finite."""
        return all(bool(torch.isfinite(entries).all()) for entries in self.fisher.values())

    def save(self, path: str | Path) -> None:
        """Write ``curvature.safetensors``."""
        save_tensors(path, "curvature", self.fisher, {**self.settings, "kind": self.kind})


def squared_sums(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sum over samples of the squared gradients, float64, by name."""
    return {name: gradient.to(torch.float64).square().sum(0) for name, gradient in gradients.items()}
