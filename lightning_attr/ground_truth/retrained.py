"""What a retraining measured: the queries under the original and under the retrained model.

Shapes: Q queries, K removed samples, D draws, C x H x W a latent; of an image, X x Y pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.expect import expect_settings, expect_tensors
from lightning_attr.ground_truth.metrics.functional import generation_deviation

#: The tensors of such a file.
TENSORS: Mapping[str, str] = {
    "query_id": "int Q",
    "removed_id": "int K",
    "original_losses": "finite Q D",
    "retrained_losses": "finite Q D",
}
#: Those that it has as well where the queries were made again.
MADE_AGAIN: Mapping[str, str] = {
    f"{model}_{name}": words
    for model in ("original", "retrained")
    for name, words in (("latent", "finite Q C H W"), ("image", "int Q X Y rgb"))
}


def load_retrained(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read ``retraining.safetensors``: (tensors, settings); without latents and images where none was made again.

    Raises:
        UserError: It is missing, damaged, or holds something else.
    """
    tensors, settings = load_tensors(path, "retraining")
    expect_tensors(path, tensors, {**TENSORS, **(MADE_AGAIN if tensors.keys() & MADE_AGAIN.keys() else {})})
    expect_settings(str(path), settings, {"method": str, "k": int})
    return tensors, settings


def removed_group(settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the group that a retraining went without, and by what samples are grouped; None where none was named.

    Raises:
        UserError: The settings name it in another way.
    """
    if "grouping" not in settings:
        return None
    expect_settings("settings of a retraining", settings, {"grouping": str, "groups": list})
    return " + ".join(map(str, settings["groups"])), settings["grouping"]


def deviation_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return Delta G of every query, float64 [Q]; NaN where none was made again."""
    if "original_latent" not in tensors:
        return torch.full((len(tensors["query_id"]),), torch.nan, dtype=torch.float64)
    return generation_deviation(tensors["original_latent"], tensors["retrained_latent"])
