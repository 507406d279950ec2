"""A feature tuned to attribution: two linear maps over it, one of outputs and one of training images.

AbC is "Evaluating Data Attribution for Text-to-Image Models" (ICCV 2023), section 4.

Shapes: B outputs, N training images, R views or captions of an image, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attr import features
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.expect import expect_settings, expect_tensors
from lightning_attr.artifacts.inputs import input_paths
from lightning_attr.errors import UserError, quoted
from lightning_attr.features.base import Feature

#: The kind of the file.
KIND = "features"

#: The maps and their tensors in the file.
TENSORS = {f"{side}.{part}": axes for side in ("query", "sample") for part, axes in (("weight", "F F"), ("bias", "F"))}


class Mapper(nn.Module):
    """``x + A x + b`` of a row x of length 1; A and b are zero at first, so that weight decay pulls to the identity.

    Args:
        size: F.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [..., F]; they are brought to length 1 first."""
        unit = F.normalize(rows, dim=-1)
        return unit + F.linear(unit, self.weight, self.bias)


class Mappers(nn.Module):
    """The map of outputs, ``query``, and that of training images, ``sample``.

    Args:
        size: F.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = Mapper(size)
        self.sample = Mapper(size)


def info_nce(cosine_BN: Tensor, positive_BN: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss: minus the mean log probability of an output's exemplars among all N, a scalar.

    Args:
        cosine_BN: How alike outputs and training images are.
        positive_BN: Which of these are the output's exemplars, bool; at least one each.
        temperature: What cosines are divided by.
    """
    log_probability_BN = (cosine_BN / temperature).log_softmax(1)
    return -((log_probability_BN * positive_BN).sum(1) / positive_BN.sum(1)).mean()


class Tuned(NamedTuple):
    """What the file of a tuned feature holds.

    Attributes:
        mappers: The maps.
        feature: What they are over, see :meth:`~lightning_attr.features.Feature.config`.
        settings: How they were made.
    """

    mappers: Mappers
    feature: Mapping[str, Any]
    settings: Mapping[str, Any]


def save_tuned(path: str | Path, mappers: Mappers, feature: Feature, settings: Mapping[str, Any]) -> None:
    """Write the maps and what they are over."""
    save_tensors(path, KIND, mappers.state_dict(), {"feature": feature.config(), **settings})


def load_tuned(path: str | Path) -> Tuned:
    """Read what :func:`save_tuned` wrote.

    Raises:
        UserError: The file is missing, damaged, or holds something else.
    """
    tensors, settings = load_tensors(path, KIND)
    expect_tensors(path, tensors, {name: f"finite {axes}" for name, axes in TENSORS.items()})
    expect_settings(str(path), settings, {"feature": dict})
    mappers = Mappers(len(tensors["query.bias"]))
    mappers.load_state_dict({name: tensors[name] for name in TENSORS})
    return Tuned(mappers.requires_grad_(False), settings["feature"], settings)


def backbone(path: str | Path, config: Mapping[str, Any], given: Feature | None) -> Feature:
    """Return the feature that maps are over, and check that it is the one that they were tuned on.

    Args:
        path: The file of the maps.
        config: What it says of the feature.
        given: The feature, where it lies elsewhere now or is of no class of ours; None makes it by the config.

    Raises:
        UserError: It cannot be made, or has other settings or weights.
    """
    feature = _built(path, config) if given is None else given
    found, expected = _identity(type(feature), feature.config()), _identity(type(feature), config)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{path}: found a feature of {name} {quoted(found.get(name))}, expected {quoted(expected.get(name))}, "
                "on which it was tuned"
            )
    return feature


def _built(path: str | Path, config: Mapping[str, Any]) -> Feature:
    """Return a feature of ours by its config; a file names no other class, which would be to run what it names."""
    known = {name: each for name in features.__all__ if isinstance(each := getattr(features, name), type)}
    owner = known.get(str(config.get("class")))
    if owner is None or owner is Feature:
        raise UserError(
            f"{path}: found a feature of class {quoted(config.get('class'))}, which is none of ours; name it by "
            "method.feature"
        )
    arguments = {name: value for name, value in config.items() if name not in ("class", "weights")}
    try:
        return owner(**arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        raise UserError(f"{path}: found arguments {quoted(arguments)}, expected those of {owner.__name__}") from error


def _identity(owner: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a feature's config its numbers depend on: all but where its weights lie."""
    paths = dict(input_paths(owner, config))
    return {name: value for name, value in config.items() if name not in paths}
