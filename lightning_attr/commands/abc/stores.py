"""The two stores of a set, from stores that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.store import Meta, Sample, Schema, Store, StoreWriter
from datamodules.store.records import first_difference
from lightning_attr.commands.prepare.encode import check_made_from, finished
from lightning_attr.console import progress
from lightning_attr.encoders import ENCODER_STATES, check_encoders, encoders_digest
from lightning_attr.errors import UserError

BATCH = 256
"""Samples that are read together."""

ANOTHER = "choose another folder"


class Part(NamedTuple):
    """Samples of a store that go into another."""

    store: Store
    positions: NDArray[np.int64]
    offset: int
    """What is added to their ids."""
    attributes: Mapping[int, Mapping[str, Any]]
    """What is added to the attributes of samples, by their new id."""


def join(path: Path, parts: Sequence[Part], made_from: Mapping[str, Any]) -> None:
    """Write the samples of several stores into one, or go on with that, or see that it is done.

    Args:
        path: The store to make.
        parts: In the order of their new ids.
        made_from: What the store is to say that it was made from.

    Raises:
        UserError: There is another store, or the parts' fields or encoders differ.
    """
    first = parts[0].store
    check_alike([part.store for part in parts])
    if finished(path, first.schema, made_from):
        return
    with StoreWriter(path, first.schema) as writer, progress("samples") as bar:
        if len(writer):
            check_made_from(writer.partial, writer.made_from, made_from, ANOTHER)
        writer.put_made_from(made_from)
        for name in ENCODER_STATES:
            if (state := first.encoder_state(name)) is not None:
                writer.put_encoder_state(name, state)
        task = bar.add_task(path.name, total=sum(len(part.positions) for part in parts))
        last = -1 if writer.last_id is None else writer.last_id
        for part in parts:
            for batch in _batches(part, last):
                for sample in _samples(part, batch):
                    writer.write(sample)
                bar.advance(task, len(batch))
        writer.finish()


def check_alike(stores: Sequence[Store]) -> None:
    """Check that samples of several stores may lie in one.

    Raises:
        UserError: Fields or encoders differ.
    """
    first = stores[0]
    for store in stores[1:]:
        check_encoders(store, encoders_digest(first), first.path)
        if difference := first_difference(
            Schema(store.schema.fields, {}).to_json(), Schema(first.schema.fields, {}).to_json()
        ):
            raise UserError(f"{store.path}: {difference} as in {first.path}")


def _batches(part: Part, last: int) -> Iterator[NDArray[np.int64]]:
    """Yield the positions of what is not written yet."""
    left = part.positions[part.store.ids[part.positions] + part.offset > last]
    yield from (left[start : start + BATCH] for start in range(0, len(left), BATCH))


def _samples(part: Part, positions: NDArray[np.int64]) -> Iterator[Sample]:
    arrays = {name: part.store.read(name, positions) for name in part.store.schema.fields}
    for row, position in enumerate(positions.tolist()):
        values = {name: rows[row] for name, rows in arrays.items()}
        meta, thumb = _meta(part, position), part.store.thumb(position)
        yield Sample(meta, values, thumb, part.store.file_digest(position))


def _meta(part: Part, position: int) -> Meta:
    meta = part.store.meta(position)
    new = meta.id + part.offset
    return replace(meta, id=new, attributes={**meta.attributes, **part.attributes.get(new, {})})
