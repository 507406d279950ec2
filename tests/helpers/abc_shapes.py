"""A small real AbC set over the shapes: a "model" for a colour and shape, whose exemplars are all images of that kind.

Its queries are other images of the kind, at other places, sizes and backgrounds, which is what features must look past.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from datamodules import Store
from lightning_attr.abc.set import GALLERY, QUERIES, AbcSet, CustomModel, write_set
from lightning_attr.commands.prepare.shapes import main as prepare_shapes

#: Kinds of each split; the images of the other kinds are distractors.
SPLITS = {"train": 12, "validation": 5, "test": 6}


def make_shapes_set(folder: Path, count: int, queries: int, splits: Mapping[str, int] = SPLITS) -> AbcSet:
    """Prepare the stores and write the set."""
    folder.mkdir(parents=True, exist_ok=True)
    stores = ["--out", str(folder / GALLERY), "--val", str(folder / QUERIES)]
    prepare_shapes([*stores, "--count", str(count), "--val_count", str(queries), "--planted", "1", "-q"])
    exemplars, made = (_by_kind(Store(folder / name)) for name in (GALLERY, QUERIES))
    kinds = iter(kind for kind in sorted(made) if len(exemplars[kind]) > 1)
    models = [
        CustomModel(kind, "kind", split, tuple(exemplars[kind]), {"thing": tuple(made[kind])})
        for split, number in splits.items()
        for kind, _ in zip(kinds, range(number), strict=False)
    ]
    return write_set(folder, models)


def _by_kind(store: Store) -> dict[str, list[int]]:
    found = defaultdict(list)
    for position in range(len(store)):
        meta = store.meta(position)
        found[f"{meta.attributes['colour']} {meta.attributes['shape']}"].append(meta.id)
    return found
