"""The families of models, and how one is built from configs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin

from lightning_attr.errors import UserError, expect_within, quoted
from lightning_attr.models.build import build_class
from lightning_attr.models.denoiser import Denoiser
from lightning_attr.models.flux import Flux
from lightning_attr.models.model import Model
from lightning_attr.models.objective import Objective
from lightning_attr.models.pixart import PixArt
from lightning_attr.models.sd3 import SD3
from lightning_attr.models.sdxl import SDXL
from lightning_attr.models.unet import UNet

#: The families, by what diffusers calls their networks; of those of one class the first that takes a config has it.
FAMILIES: Mapping[str, Sequence[type[Denoiser]]] = {
    UNet.class_name: (SDXL, UNet),
    **{family.class_name: (family,) for family in (SD3, Flux, PixArt)},
}


def build(
    denoiser: Mapping[str, Any], scheduler: Mapping[str, Any], seed: int = 0, objective: Objective = Objective()
) -> Model:
    """Build a model from configs, with initial weights that depend on ``seed`` alone.

    Args:
        denoiser: Of the network, as in a diffusers ``config.json``; ``_class_name`` defaults to
            ``UNet2DConditionModel``.
        scheduler: See :class:`~lightning_attr.models.process.Process`.
        seed: Of the weights.
        objective: What training minimises.

    Raises:
        UserError: A class or one of its arguments does not exist, or the family is not known.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(denoiser, scheduler, objective, "cpu")


def unfilled(denoiser: Mapping[str, Any], scheduler: Mapping[str, Any], objective: Objective = Objective()) -> Model:
    """Build a model as :func:`build` does, on the device ``meta``: its weights have shapes, and no memory yet.

    Raises:
        UserError: As of :func:`build`.
    """
    return _built(denoiser, scheduler, objective, "meta")


def _built(denoiser: Mapping[str, Any], scheduler: Mapping[str, Any], objective: Objective, device: str) -> Model:
    named = {"_class_name": UNet.class_name, **denoiser}
    kind = family("model.denoiser", named)
    for name, value in named.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float):
                expect_within(f"model.denoiser.{name}", number, 0)
    with torch.device(device):
        network = build_class("model.denoiser", named, ModelMixin)
    configs = {
        "denoiser": denoiser,
        "scheduler": scheduler,
        **({"objective": given} if (given := objective.given) else {}),
    }
    return Model(kind(network), kind.process(scheduler), configs=configs, objective=objective)


def family(key: str, config: Mapping[str, Any]) -> type[Denoiser]:
    """Return the family of a network.

    Raises:
        UserError: It is none of :data:`FAMILIES`, or one of its class that needs other conditions.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{key}: found a network of class {name!r}, expected one of {', '.join(FAMILIES)}")
    found = next(kind for kind in FAMILIES[name] if kind.takes(config))
    found.check_config(key, config)
    _check_numbers(key, name, config)
    return found


def _check_numbers(key: str, name: str, config: Mapping[str, Any]) -> None:
    """Refuse what is no number where there must be one: a network takes anything, and fails when it is called."""
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    for argument, value in config.items():
        must = argument in known and known[argument].annotation in (float, "float")
        if must and (not isinstance(value, int | float) or not math.isfinite(value)):
            raise UserError(f"{key}: {argument}: found {quoted(value)}, expected a number")
