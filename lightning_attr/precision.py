"""In which precision something is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def outside_autocast(function: Callable[..., T]) -> Callable[..., T]:
    """Let a function compute in the precision of its arguments, also under autocast: bfloat16 scores tie."""
    for device in ("cpu", "cuda"):
        function = torch.autocast(device, enabled=False)(function)
    return function
