"""Custom Diffusion: its own keys and values at cross-attention, and of some files queries and outputs as well.

What they do to an image is what weights of the base would do in their place, so there they go. In training alone their
authors stop the gradient at the first token; attribution takes it whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lightning_attr.adapters.lora import File
from lightning_attr.errors import UserError

#: The part of a key that says what it is, and what it is called in the base.
NAMES: Mapping[str, str] = {
    "to_k_custom_diffusion": "to_k",
    "to_v_custom_diffusion": "to_v",
    "to_q_custom_diffusion": "to_q",
    "to_out_custom_diffusion": "to_out",
}


def is_custom_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file is of Custom Diffusion, by its keys."""
    return any("_custom_diffusion" in name for name in tensors)


def read_weights(file: File) -> dict[str, Tensor]:
    """Return the weights by the names of those of the base that they take the place of.

    Raises:
        UserError: A key is no such weight.
    """
    result: dict[str, Tensor] = {}
    for key, value in file.tensors.items():
        if not value.numel():  # of a layer that was not trained
            continue
        name = key.removeprefix("unet.").replace(".processor.", ".")
        for own, base in NAMES.items():
            name = name.replace(own, base)
        if name == key or "attn2" not in name:
            raise UserError(f"{file.where}: found the key {key}, expected those of Custom Diffusion alone")
        result[name] = value
    return result


def keys_of(weights: Mapping[str, Tensor], processors: Collection[str]) -> dict[str, Tensor]:
    """Return weights of cross-attention by the keys that they have in a file; the inverse of :func:`read_weights`.

    Args:
        weights: By name.
        processors: Of all attention layers of the network: diffusers wants an entry of those that have none as well.
    """
    result = {name: torch.empty(0) for name in processors if "attn2" not in name}
    for name, value in weights.items():
        block, _, rest = name.partition(".attn2.")
        part, _, role = rest.partition(".")
        result[f"{block}.attn2.processor.{part}_custom_diffusion.{role}"] = value
    return result
