"""Tensors on disk, digests, and the manifest that says what a run was made from.

Artefacts are safetensors files. Neither safetensors nor torch notices a flipped bit, so the header carries a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save
from torch import Tensor

from datamodules.errors import UserError
from datamodules.store import Store
from datamodules.tensors import read_safetensors, write_atomically

__all__ = [
    "file_digest",
    "load_tensors",
    "read_json",
    "save_tensors",
    "tensors_digest",
    "write_atomically",
    "write_json",
]


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: It is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Save named tensors and JSON settings in one safetensors file, atomically and with a checksum."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    text = json.dumps(settings, sort_keys=True)
    write_atomically(path, save(flat, {"settings": text, "checksum": _checksum(flat, text)}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what :func:`save_tensors` saved: (tensors, settings).

    Raises:
        UserError: The file is missing, damaged, or not one of ours.
    """
    tensors, metadata = read_safetensors(path)
    if "checksum" not in metadata or "settings" not in metadata:
        raise UserError(f"{path}: found no checksum in its header, expected an artefact of lightning-attr")
    if _checksum(tensors, metadata["settings"]) != metadata["checksum"]:
        raise UserError(f"{path}: damaged, its checksum does not match its contents")
    return tensors, json.loads(metadata["settings"])


def _checksum(tensors: Mapping[str, Tensor], settings: str) -> str:
    return xxhash.xxh3_128_hexdigest((tensors_digest(tensors) + settings).encode())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes, types and bytes of ``tensors``."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the digest of a file; for a store the one that it carries."""
    if Path(path).suffix == ".lmdb":
        return Store(str(path)).digest
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
