"""What was called otherwise before format 1: files of tensors without kind and format, runs, and their classes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

#: The tensors of each kind.
TENSORS: Mapping[frozenset[str], str] = {
    frozenset({"losses"}): "losses",
    frozenset({"rows"}): "chunk",
    frozenset({"query_id", "sample_id", "scores"}): "scores",
    frozenset({"index", "query_id", "value"}): "top scores",
}

#: A setting that only files of a kind have.
SETTINGS = {"step_size": "unlearned weights", "forget": "mirrored weights", "kind": "curvature"}

#: Files of runs that have another name now.
FILES = {"retraining.safetensors": "leave_k_out.safetensors"}

#: Classes in configs and manifests that have another name now.
CLASSES = {
    "lightning_attr.tasks.LeaveKOut": "lightning_attr.tasks.Retraining",
    "lightning_attr.tasks.GroupedLeaveKOut": "lightning_attr.tasks.GroupedRetraining",
}


def found(path: Path) -> Path:
    """Return the path; where nothing is there but a file under the name that it had before, that."""
    before = path.with_name(FILES.get(path.name, path.name))
    return before if before.is_file() and not path.is_file() else path


def renamed(value: Any) -> Any:
    """Return a config, or a part of one, with the classes by the names that they have now."""
    if isinstance(value, Mapping):
        return {key: renamed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [renamed(each) for each in value]
    return CLASSES.get(value, value) if isinstance(value, str) else value


def kind_before(names: Collection[str], settings: Collection[str]) -> str:
    """Return the kind of a file by the names of its tensors and settings; ``unknown`` where neither tells."""
    if (kind := TENSORS.get(frozenset(names))) is not None:
        return kind
    if "removed_id" in names:
        return "retraining"
    if "masks" in names:
        return "pack"
    return next((kind for setting, kind in SETTINGS.items() if setting in settings), "unknown")


def scores_checksum_before(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the checksum that files of scores had over names, types, shapes and bytes."""
    digest = xxhash.xxh3_128(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
