"""What a file of ours must hold: a checksum says no more than that it is as it was written.

Shapes are named by words: an axis whose letter occurs twice has the same size at both places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_attr.errors import UserError


def expect_tensors(path: str | Path, tensors: Mapping[str, Tensor], expected: Mapping[str, str], **sizes: int) -> None:
    """Check the tensors of a file.

    Args:
        path: The file.
        tensors: By name; further ones do not matter.
        expected: What each is, such as ``int Q`` or ``finite Q D``: ``int``, ``float`` or ``finite`` and its axes.
        sizes: Those of axes that are known.

    Raises:
        UserError: One is missing, or of another type or shape, or not finite.
    """
    for name, words in expected.items():
        kind, *axes = words.split()
        if (tensor := tensors.get(name)) is None:
            raise UserError(f"{path}: found no tensor {name}, expected {words}")
        if tensor.dtype == torch.bool or tensor.is_floating_point() != (kind != "int"):
            raise UserError(f"{path}: found {name} of {tensor.dtype}, expected {words}")
        known = dict(zip(axes, tensor.shape, strict=False)) | sizes
        shape = tuple(known.get(axis, -1) for axis in axes)
        if tuple(tensor.shape) != shape:
            raise UserError(f"{path}: found {name} of shape {tuple(tensor.shape)}, expected {words}, with {known}")
        if kind == "finite" and not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: found {name} that is not finite, expected finite numbers")
        sizes = known


def expect_settings(what: str, settings: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    """Check the settings in a file.

    Args:
        what: The file, and where in it they are.
        settings: By name; further ones do not matter.
        expected: The type of each.

    Raises:
        UserError: One is missing or of another type.
    """
    for name, kind in expected.items():
        if name not in settings:
            raise UserError(f"{what}: found no {name}, expected one of type {kind.__name__}")
        if not isinstance(settings[name], kind) or (kind is int and isinstance(settings[name], bool)):
            raise UserError(f"{what}: found {name} of type {type(settings[name]).__name__}, expected {kind.__name__}")
