"""Files that are there as a whole or not at all: tensors with a checksum, and JSON.

Artefacts are safetensors files. Neither safetensors nor torch notices a flipped bit, so the header carries a checksum.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_attr.errors import UserError


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, whatever kills the process."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: (tensors, metadata). Whoever wrote it knows where its checksum is.

    Raises:
        UserError: The file is missing or not a safetensors file.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from error


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
