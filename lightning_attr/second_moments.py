"""Adam's second moments: the diagonal that preconditions its steps, from a checkpoint, or estimated from gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.errors import UserError
from lightning_attr.models import Model

#: What Adam adds to the root of a second moment, where no checkpoint says it.
EPSILON = 1e-8


class Adam(NamedTuple):
    """What a checkpoint keeps of its optimizer.

    Attributes:
        second_moments: Of the trained weights by name, without Adam's bias towards zero.
        learning_rate: At the last step.
        epsilon: Added to the root of a second moment.
    """

    second_moments: Mapping[str, Tensor]
    learning_rate: float
    epsilon: float


def adam_of(model: Model) -> Adam | None:
    """Return what the checkpoint of a model keeps of Adam.

    Returns:
        None where the model is of no checkpoint, or that holds the weights alone, or another optimizer's state.

    Raises:
        UserError: The checkpoint's optimizer is of other weights.
    """
    if Path(model.path).suffix != ".ckpt":
        return None
    states = read_checkpoint(model.path).get("optimizer_states") or []
    if len(states) != 1 or not states[0]["state"]:
        return None
    (group,), state = states[0]["param_groups"], states[0]["state"]
    trained = {
        name: weight
        for name, weight in model.network.named_parameters()
        if not model.denoiser.adapter or name in model.denoiser.adapter
    }
    moments = [debiased_second_moment(state.get(index, {}), group) for index in group["params"]]
    if any(each is None for each in moments):
        return None
    found = [tuple(each.shape) for each in moments if each is not None]
    expected = [tuple(weight.shape) for weight in trained.values()]
    if found != expected:
        raise UserError(
            f"checkpoint {model.path}: found an optimizer of {len(found)} weights, expected that of its "
            f"{len(expected)} trained ones, and of their shapes"
        )
    named = {name: each for name, each in zip(trained, moments, strict=True) if each is not None}
    return Adam(named, float(group["lr"]), float(group["eps"]))


def debiased_second_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """Return the second moment of a weight as Adam divides by its root."""
    if "exp_avg_sq" not in state:
        return None
    moment: Tensor = state["exp_avg_sq"]
    left: float = float(group["betas"][1]) ** float(state["step"])
    return moment.float() / (1 - left)


def adam_diagonal(second_moments: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Return the diagonal ``1 / (sqrt(v) + eps)`` that Adam multiplies its average of gradients by, shaped as ``v``."""
    return 1 / (torch.sqrt(second_moments) + epsilon)
