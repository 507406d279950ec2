"""Digests of what a run reads: files, stores by the digest that they carry, samples by their ids."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import xxhash
import yaml

from datamodules.loading import Ints
from datamodules.store import Store
from lightning_attr.artifacts import tensors_digest
from lightning_attr.artifacts.checkpoint_files import content_digest, model_digest


def file_digest(path: str | Path) -> str:
    """Return the digest of a file: of a folder that of its files.

    Of a store, a checkpoint or a model spec it is the one that it carries, of what is in it or what it names.
    """
    if Path(path).is_dir():
        return joined_digest(file for file in Path(path).rglob("*") if file.is_file() and file.name[0] != ".")
    if Path(path).suffix == ".lmdb":
        return Store(str(path)).digest
    if Path(path).suffix == ".ckpt" and (carried := model_digest(path)) is not None:
        return carried
    if Path(path).suffix == ".yaml" and (carried := _spec_digest(Path(path))) is not None:
        return carried
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _spec_digest(path: Path) -> str | None:
    """Return the digest that a model spec carries, wherever lies what it names; None of another file."""
    try:
        spec = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(spec, dict) or not {"model", "digests"} <= spec.keys():
        return None
    objective = [spec["objective"]] if spec.get("objective") else []
    return content_digest([spec["digests"], spec.get("alpha"), spec.get("variant"), *objective])


def joined_digest(paths: Iterable[Path]) -> str:
    """Return one digest of several files or folders, whatever their order and wherever they lie together."""
    found = sorted(paths)
    root = os.path.commonpath(path.parent for path in found)
    names = [f"{path.relative_to(root)} {file_digest(path)}" for path in found]
    return xxhash.xxh3_128_hexdigest("\n".join(names).encode())


def samples_used(store: Store, positions: Ints) -> dict[str, Any]:
    """Return how many samples of a store are used and the digest of their ids, for the settings of artefacts."""
    ids = torch.from_numpy(store.ids[positions])
    return {"count": len(ids), "ids": tensors_digest({"id": ids})}
