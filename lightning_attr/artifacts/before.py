"""What files of before format 1 say of themselves, which had neither kind nor format in their headers."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

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
