"""Files of weights in a folder of diffusers or transformers: which ones to load, and whether all of them were there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attr.errors import UserError


def variant_of(folder: Path, stem: str, asked: str | None = None) -> str | None:
    """Return which variant of its weights to load: without one asked for, the only one where there are no plain ones.

    Args:
        folder: A local folder; of what is none, such as a hub name, the plain ones are meant.
        stem: How the files' names begin: ``diffusion_pytorch_model``, or ``model`` as transformers has it.
        asked: The variant that the user wants, such as ``fp16``.

    Raises:
        UserError: There are several, or weights are there as a pickle alone, which could run code.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if asked is not None or {f"{stem}.safetensors", f"{stem}.safetensors.index.json"} & names:
        return asked
    pattern = rf"{stem}(?:\.safetensors\.index\.(\w+)\.json|\.(\w+)\.safetensors)"
    found = sorted({match[1] or match[2] for name in names if (match := re.fullmatch(pattern, name))})
    if len(found) > 1:
        raise UserError(f"{folder}: found variants {', '.join(found)}, expected variant to name one of them")
    pickles = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth")))
    if pickles and not found:
        raise UserError(f"{folder}: found weights as {pickles[0]}, which could run code, expected safetensors files")
    return found[0] if found else None


def check_config(where: str | Path, config: Mapping[str, Any]) -> None:
    """Refuse the config of a model that is no plain one of its library.

    Raises:
        UserError: Its weights are quantized, or it brings code of its own.
    """
    for name in ("quantization_config", "auto_map"):
        if config.get(name):
            raise UserError(f"{where}: found {name}, expected a model without: {_REFUSED[name]}")


_REFUSED = {
    "quantization_config": "its weights would not be what gradients are taken by",
    "auto_map": "it names code of its own, which is not run",
}


def check_weights(where: str | Path, network: nn.Module, loading: Mapping[str, Collection[Any]]) -> None:
    """Check that a folder's weights are those of its network, all and no others, and numbers.

    Args:
        where: The folder, for messages.
        network: What was loaded.
        loading: What the library says of it, ``output_loading_info``.

    Raises:
        UserError: They are not: the libraries draw at random what is missing.
    """
    wrong = {"missing_keys": "no", "unexpected_keys": "an unknown", "mismatched_keys": "another shape of"}
    for what, none in wrong.items():
        if names := sorted(map(str, loading.get(what) or ())):
            raise UserError(f"{where}: found {none} weight {names[0]}, expected those of its config")
    check_finite(where, network)


def found_instead(value: Any) -> str | None:
    """Return what a value is where it is no plain floating-point tensor, such as an integer; None where it is one."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        return f"a tensor of {value.dtype}, {value.layout} on {value.device}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor of {value.numel()} numbers in {value.untyped_storage().nbytes()} bytes"
    return None


def check_finite(where: str | Path, network: nn.Module) -> None:
    """Check that all weights are numbers.

    Raises:
        UserError: One is infinite or not a number.
    """
    for name, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            raise UserError(f"{where}: weight {name} is not finite, expected numbers")
