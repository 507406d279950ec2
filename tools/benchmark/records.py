"""The same random records as a store and as raw arrays in memory-mapped files.

Shapes: N records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules import Field, Meta, Sample, Schema, Store, StoreWriter

LATENT = Field((2, 4, 16, 16), "float16", "latent")
"""Two views of 4x16x16: the latents of the published experiment."""

TEXT = Field((5, 77, 1024), "float16", "condition")
"""Five captions in the states of a CLIP-type encoder: 789 kB."""

SHORT_TEXT = Field((5, 16, 64), "float16", "condition")
"""Five captions in the states of the built-in encoder: 10 kB."""


@dataclass(frozen=True)
class Records:
    """Records in both forms; all are in the page cache when they have just been written.

    Attributes:
        store: The store.
        arrays: A read-only memory map [N, *shape] per field.
    """

    store: Store
    arrays: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.store)


def write_records(folder: Path, fields: Mapping[str, Field], count: int) -> Records:
    """Write ``count`` records with as many captions as their text has rows."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    captions = ("a caption",) * (fields["text"].shape[0] if "text" in fields else 1)
    arrays = {
        name: np.memmap(folder / f"{name}.bin", field.dtype, "w+", shape=(count, *field.shape))
        for name, field in fields.items()
    }
    with StoreWriter(folder / "records.lmdb", Schema(fields, {})) as writer:
        for id in range(count):
            for name, field in fields.items():
                arrays[name][id] = generator.standard_normal(field.shape, dtype=np.float32)
            sample = {name: np.asarray(array[id]) for name, array in arrays.items()}
            writer.write(Sample(Meta(id, captions, None, None, {}), sample, b""))
        writer.finish()
    for array in arrays.values():
        array.flush()
    maps = {name: _mapped(folder, name, array) for name, array in arrays.items()}
    return Records(Store(folder / "records.lmdb"), maps)


def _mapped(folder: Path, name: str, written: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only memory map of a file, as a plain array: numpy's own class slows down every small access."""
    return np.asarray(np.memmap(folder / f"{name}.bin", written.dtype, "r", shape=written.shape))
