"""What is said when a curvature and the gradients it is applied to do not belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_attr.errors import UserError


def missing(name: str, settings: Mapping[str, Any]) -> UserError:
    """Return the error of a weight or layer that the curvature was not fitted on."""
    return UserError(f"curvature: found none for {name}, it was fitted on weights {settings.get('weights')!r}")


def check_shape(name: str, gradient: Tensor, expected: Sequence[int]) -> None:
    """Check the last axes of a gradient [..., *expected].

    Raises:
        UserError: They differ: the curvature is of another architecture.
    """
    found = tuple(gradient.shape[max(gradient.ndim - len(expected), 0) :])
    if found != tuple(expected):
        shapes = f"found {name} {tuple(expected)}, expected {found}"
        raise UserError(f"curvature: of another architecture: {shapes}")
