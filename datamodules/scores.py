"""Scores of samples for queries, and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from xxhash import xxh3_128

from datamodules.errors import UserError

_TENSORS = ("query_id", "sample_id", "scores")


@dataclass(frozen=True)
class Scores:
    """How much each sample influenced each query; higher is more.

    Args:
        scores: float32 [Q, N].
        query_id: int64 [Q].
        sample_id: int64 [N].
        method: Name of the method that made them.
        settings: What else they depend on; anything that JSON can hold.

    Raises:
        UserError: Shapes do not fit together, or an id occurs twice.
    """

    scores: Tensor
    query_id: Tensor
    sample_id: Tensor
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in (("scores", torch.float32), ("query_id", torch.int64), ("sample_id", torch.int64)):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().to("cpu", dtype).contiguous())
        expected = (len(self.query_id), len(self.sample_id))
        if tuple(self.scores.shape) != expected:
            raise UserError(f"scores: found shape {tuple(self.scores.shape)}, expected {expected}: queries by samples")
        for name in ("query_id", "sample_id"):
            if len(getattr(self, name).unique()) != len(getattr(self, name)):
                raise UserError(f"scores.{name}: found an id twice, expected each once")

    def top(self, query_id: int, k: int) -> list[int]:
        """Ids of the `k` highest-scored samples of a query, best first; of equal scores, the smaller id first.

        Raises:
            UserError: The query is not among them, a score of it is NaN, or there are fewer than `k` samples.
        """
        rows = (self.query_id == query_id).nonzero().flatten()
        if len(rows) == 0:
            raise UserError(f"scores: found no query {query_id}, expected one of {_shown(self.query_id)}")
        if not 0 <= k <= len(self.sample_id):
            raise UserError(f"scores: found top {k}, expected 0 to {len(self.sample_id)}, the number of samples")
        row, ids = self.scores[int(rows[0])].numpy(), self.sample_id.numpy()
        if np.isnan(row).any():
            raise UserError(f"scores: found NaN for query {query_id}, expected numbers")
        return [int(sample) for sample in ids[np.lexsort((ids, -row))[:k]]]

    @classmethod
    def stack(cls, parts: Sequence[Scores]) -> Scores:
        """Rows of several scores over the same samples, which must agree in method and settings.

        Raises:
            UserError: There are none, or they do not fit together.
        """
        if not parts:
            raise UserError("scores: found nothing to stack, expected at least one")
        first = parts[0]
        for part in parts[1:]:
            if not torch.equal(part.sample_id, first.sample_id):
                raise UserError("scores: found different samples, expected the same in each to stack them")
            if part.method != first.method:
                raise UserError(f"scores: found methods {first.method} and {part.method}, expected one to stack them")
            names = sorted(first.settings.keys() | part.settings.keys())
            if other := [name for name in names if part.settings.get(name) != first.settings.get(name)]:
                raise UserError(f"scores: found different settings {', '.join(other)}, expected the same to stack them")
        scores, query_id = torch.cat([part.scores for part in parts]), torch.cat([part.query_id for part in parts])
        return cls(scores, query_id, first.sample_id, first.method, first.settings)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        path = Path(path)
        tensors = {name: getattr(self, name) for name in _TENSORS}
        metadata = {
            "method": self.method,
            "settings": json.dumps(dict(self.settings), sort_keys=True),
        }
        data = save(tensors, metadata | {"checksum": _checksum(tensors, metadata)})
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: The file is missing, damaged, or holds no scores.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file, expected scores")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                metadata = dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or not a safetensors file ({error})") from error
        checksum = metadata.pop("checksum", None)
        if sorted(tensors) != sorted(_TENSORS) or sorted(metadata) != ["method", "settings"]:
            raise UserError(f"{path}: found {sorted(tensors)}, expected scores: {sorted(_TENSORS)}")
        if checksum != _checksum(tensors, metadata):
            raise UserError(f"{path}: damaged, its checksum does not match its contents")
        return cls(**tensors, method=metadata["method"], settings=json.loads(metadata["settings"]))


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Checksum over names, types, shapes and bytes."""
    digest = xxh3_128(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _shown(ids: Tensor, most: int = 10) -> str:
    values = ids[:most].tolist()
    return f"{values}" if len(ids) <= most else f"{values} and {len(ids) - most} more"
