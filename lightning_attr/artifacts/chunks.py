"""What a long pass over a store measured, in chunk files: a stop costs no more than the chunk that is under way.

Shapes: N samples in all, B samples of a chunk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_attr.artifacts import load_artifact, save_tensors
from lightning_attr.console import warn
from lightning_attr.errors import UserError

#: Batches in a chunk.
BATCHES_PER_CHUNK = 4

Ints = NDArray[np.int64]


class Chunks(Sequence[Tensor]):
    """Rows of samples, [B, ...] in each file, which are written one by one and read when asked for.

    Where chunks and their batches begin depends on nothing but the samples and the batch size, so that neither a stop
    nor the number of ranks changes what is computed together. A file that was made with other settings is never used.

    Args:
        folder: Where the files lie.
        settings: All that the rows depend on.
        positions: Positions of the samples in their store, [N], ascending.
        batch_size: Samples in a batch.
        device: Where rows go that are read.
        batches: Batches in a chunk.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        positions: Ints,
        batch_size: int,
        device: torch.device | str = "cpu",
        batches: int = BATCHES_PER_CHUNK,
    ) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))  # as a file gives it back, which has no tuples
        self.positions = np.split(positions, range(step := batch_size * batches, len(positions), step))
        self.batch_size = batch_size
        self.device = device

    def __len__(self) -> int:
        """Return the number of chunks, written or not."""
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        """Read the rows of a chunk, [B, ...].

        Raises:
            UserError: The file is missing, damaged, or was made with other settings.
        """
        if (rows := self._read(index)) is None:
            raise UserError(f"{self._path(index)}: missing or of another run; run the same command again")
        return rows.to(self.device)

    def share(self, rank: int = 0, ranks: int = 1) -> range:
        """Return a rank's chunks."""
        return range(rank, len(self), ranks)

    def pending(self, rank: int = 0, ranks: int = 1) -> list[int]:
        """Return which chunks of a rank's share are still to be done; a damaged one is, with a warning."""
        return [index for index in self.share(rank, ranks) if not self._whole(index)]

    def batches(self, index: int) -> list[Ints]:
        """Return the positions of each batch of a chunk."""
        positions = self.positions[index]
        return np.split(positions, range(self.batch_size, len(positions), self.batch_size))

    def write(self, index: int, rows: Tensor) -> None:
        """Write the rows of a chunk."""
        save_tensors(self._path(index), "chunk", {"rows": rows}, self.settings)

    def delete(self) -> None:
        """Delete all chunks."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self, index: int) -> bool:
        try:
            return self._read(index) is not None
        except UserError as error:
            warn(f"{error}; it is measured again")
            return False

    def _read(self, index: int) -> Tensor | None:
        if not (path := self._path(index)).exists():
            return None
        tensors, header = load_artifact(path)
        if (header.kind, header.settings) != ("chunk", self.settings):
            return None
        if len(tensors.get("rows", ())) != len(self.positions[index]):
            raise UserError(f"{path}: found no rows of {len(self.positions[index])} samples")
        return tensors["rows"]

    def _path(self, index: int) -> Path:
        positions = self.positions[index]
        return self.folder / f"{positions[0]:09d}-{positions[-1]:09d}.safetensors"


class Passes(Sequence[Tensor]):
    """The chunks of several passes over the same samples, each in a folder of its own; rows are read side by side.

    Args:
        folder: Where the folders lie; of one pass it is the only one.
        count: The number of passes.
        settings: As of :class:`Chunks`, and so are the other arguments.
        positions: Likewise.
        batch_size: Likewise.
        device: Likewise.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        settings: Mapping[str, Any],
        positions: Ints,
        batch_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        folders = [folder] if count == 1 else [folder / f"pass-{index:05d}" for index in range(count)]
        self.folder = folder
        self.passes = [Chunks(each, {**settings, "passes": count}, positions, batch_size, device) for each in folders]
        self.positions = self.passes[0].positions

    def __len__(self) -> int:
        """Return the number of chunks of a pass."""
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        """Read the rows of a chunk, [B, ...], those of all passes side by side.

        Raises:
            UserError: As of :class:`Chunks`.
        """
        return torch.cat([chunks[index] for chunks in self.passes], dim=1)

    def pending(self, rank: int = 0, ranks: int = 1) -> list[tuple[int, int]]:
        """Return which passes and chunks of a rank's share are still to be done, pass by pass."""
        return [(index, chunk) for index, chunks in enumerate(self.passes) for chunk in chunks.pending(rank, ranks)]

    def delete(self) -> None:
        """Delete all chunks."""
        shutil.rmtree(self.folder, ignore_errors=True)
