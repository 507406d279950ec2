"""Small sets of the AbC benchmark with known contents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from small_stores import SCHEMA, sample

from datamodules import StoreWriter
from lightning_attr.abc.set import GALLERY, QUERIES, AbcSet, CustomModel, write_set

#: Two categories and all splits. Ids of the gallery are 0, 3, 6, ...; of queries 0, 1, 2, ...
MODELS = (
    CustomModel("a-1", "artist", "train", (3, 30, 33), {"thing": (0, 1), "scene": (2,)}, "digest of a-1"),
    CustomModel("a-2", "artist", "validation", (9, 42), {"thing": (3, 4), "scene": (5, 6)}),
    CustomModel("a-3", "artist", "test", (15, 51, 54), {"thing": (7, 8), "scene": (9, 10)}),
    CustomModel("o-1", "object", "test", (60,), {"thing": (11, 12), "scene": (13,)}),
    CustomModel("o-2", "object", "test", (60, 63), {"thing": (14,)}),
)


def write_stores(folder: Path, gallery: int = 30, queries: int = 15) -> None:
    for name, ids in ((GALLERY, range(0, 3 * gallery, 3)), (QUERIES, range(queries))):
        with StoreWriter(folder / name, SCHEMA) as writer:
            for number in ids:
                writer.write(sample(number))
            writer.finish()


def make_set(folder: Path, models: Sequence[CustomModel] = MODELS, gallery: int = 30) -> AbcSet:
    write_stores(folder, gallery)
    return write_set(folder, models)
