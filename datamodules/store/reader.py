"""Reading a finished store: every byte that is handed out has passed its checksum.

Shapes: N samples of the store, B samples that are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules.store.blocks import BlockReader
from datamodules.store.digest import Damage, check_values
from datamodules.store.environment import Opened, open_file, store_errors
from datamodules.store.layout import (
    HEAD,
    MADE_FROM,
    META,
    THUMB,
    Blocks,
    decode_complete,
    decode_index,
    decode_json,
    decode_record,
    decode_schema,
    encoder_key,
    key_of,
    unseal,
)
from datamodules.store.records import Meta, Schema
from datamodules.store.weights import WEIGHT, check_field, checked_weights, lost_weight
from lightning_attr.console import warn
from lightning_attr.errors import StoreError

Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]


class Store:
    """A finished store, open for reading. Cheap to make, picklable, and safe to use in workers however they start.

    Args:
        path: The file.

    Attributes:
        path: The file, as given.
        schema: Fields and encoders.
        digest: Changes if anything in the store does, except ``notes`` and ``made_from``.
        notes: Counts of what befell the samples when the store was made, by name.

    Raises:
        StoreError: The file is missing, not a store, of another version, unfinished, truncated or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._file: Opened | None = open_file(self.path)
        self.schema, self.digest, self._count, self.notes = self._read_head()
        self._blocks = {name: Blocks.of(name, field) for name, field in self.schema.fields.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Other stores of the same file stay open; this one opens it again when used."""
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": None}

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._count

    @property
    def ids(self) -> Ints:
        """Return the ids of all samples [N], ascending."""
        return self._index[0]

    @property
    def caption_counts(self) -> NDArray[np.int32]:
        """Return the number of captions of each sample [N]."""
        return self._index[1]

    @cached_property
    def weights(self) -> Ints:
        """Return how often training shows each sample in an epoch [N]: what the field ``weight`` says, else once.

        Raises:
            StoreError: The field is no such number, or damaged.
        """
        field = self.schema.fields.get(WEIGHT)
        if field is None:
            if (meta := lost_weight(map(self.meta, range(len(self))))) is not None:
                warn(
                    f"{self.path}: of kohya's folders, and made before stores kept weights: sample {meta.id}, of "
                    f"weight {meta.attributes[WEIGHT]}, and all others count once; prepare the images again for weights"
                )
            return np.ones(len(self), np.int64)
        check_field(self.path, field)
        return checked_weights(self.path, self.read(WEIGHT, np.arange(len(self))))

    def positions(self, ids: ArrayLike) -> Ints:
        """Return the positions of samples by id, in the order asked.

        Raises:
            StoreError: An id is not in the store.
        """
        wanted = np.asarray(ids, np.int64).reshape(-1)
        found = np.searchsorted(self.ids, wanted)
        missing = wanted[self.ids.take(found, mode="clip") != wanted] if len(self) else wanted
        if len(missing):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            span = f"{len(self)} samples" + (f" with ids {self.ids[0]} to {self.ids[-1]}" if len(self) else "")
            raise StoreError(f"{self.path}: found no sample {missing[0]}{more}, expected ids of the store ({span})")
        return found.astype(np.int64)

    def read(self, field: str, positions: ArrayLike, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Read arrays [B, *shape] of samples, in the order asked; a position may repeat.

        Args:
            field: Name of the field.
            positions: Positions [B], from 0 to N - 1.
            rows: One row of each sample [B]: then the result is [B, *shape[1:]], and nothing else is read.

        Raises:
            StoreError: There is no such field, position or row, or a value is damaged.
        """
        if field not in self._blocks:
            raise StoreError(f"{self.path}: found no field {field!r}, expected one of {sorted(self._blocks)}")
        blocks = self._blocks[field]
        wanted = self._checked("positions", positions, self._count)
        shape = blocks.field.shape
        if rows is not None:
            wanted = wanted * shape[0] + self._checked("rows", rows, shape[0], len(wanted))
        result = np.empty((len(wanted), *(shape if rows is None else shape[1:])), blocks.field.dtype)
        if not len(wanted):
            return result
        file = self._opened()
        with store_errors(self.path), file.env.begin(file.database(field), buffers=True) as transaction:
            reader = BlockReader(transaction, blocks, self._count, memoryview(result.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
            damaged = reader.read_rows(wanted) if rows is not None else reader.read_samples(wanted)
        if damaged is not None:
            raise self._damaged(field, damaged)
        return result

    def meta(self, position: int) -> Meta:
        """Return the id, captions and the like of a sample.

        Raises:
            StoreError: There is no such position, or the value is damaged.
        """
        meta = decode_json(self.path, f"meta of position {position}", self._value(META, position), Meta.from_json)
        if (meta.id, len(meta.captions)) != (self.ids[position], self.caption_counts[position]):
            raise self._damaged(META, f"position {position}")
        return meta

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """Return what the store says that it was made from; empty where it does not.

        Raises:
            StoreError: The value is damaged.
        """
        record = self._sealed(HEAD, MADE_FROM.encode())
        return {} if record is None else decode_json(self.path, MADE_FROM, record, decode_record)

    def file_digest(self, position: int) -> str:
        """Return the digest of the file that a sample was made from; empty where that is not known.

        Raises:
            StoreError: There is no such position, or the value is damaged.
        """
        (checked,) = self._checked("positions", position, len(self))
        digest = self._sealed(MADE_FROM, key_of(int(checked))) if self.made_from else None
        return (digest or b"").decode(errors="replace")

    def thumb(self, position: int) -> bytes:
        """Return the thumbnail of a sample, an image file.

        Raises:
            StoreError: There is no such position, or the value is damaged.
        """
        return self._value(THUMB, position)

    def encoder_state(self, name: str) -> bytes | None:
        """Return the fitted numbers of an encoder; None if it has none.

        Raises:
            StoreError: The value is damaged.
        """
        return self._sealed(HEAD, encoder_key(name))

    def verify(self, progress: Progress | None = None) -> None:
        """Read everything and check every checksum, the digest and the structure of the file.

        Args:
            progress: Called with (values done, values in all).

        Raises:
            StoreError: Something is damaged; it says what.
        """
        file = self._opened()
        with store_errors(self.path):
            damage = check_values(self.path, file, self.schema, self._count, self.digest, progress)
        if damage:
            raise StoreError(f"{self.path}: damaged: {Damage.summary(damage)}")

    @cached_property
    def _index(self) -> tuple[Ints, NDArray[np.int32]]:
        return decode_index(self.path, self._sealed(HEAD, b"index"), self._count, self.schema)

    def _read_head(self) -> tuple[Schema, str, int, dict[str, int]]:
        schema, complete = self._sealed(HEAD, b"schema"), self._sealed(HEAD, b"complete")
        if schema is None:
            raise StoreError(f"{self.path}: found no schema record, expected a store")
        decoded = decode_schema(self.path, schema)
        if complete is None:
            raise StoreError(f"{self.path}: unfinished, its writer was stopped; run it again to finish the store")
        count, digest, notes = decode_json(self.path, "complete", complete, decode_complete)
        size, least = os.path.getsize(self.path), count * sum(field.nbytes for field in decoded.fields.values())
        if size < least:
            raise StoreError(f"{self.path}: found {size} bytes, expected at least {least} for {count} samples")
        return decoded, digest, count, notes

    def _opened(self) -> Opened:
        """Return the file, opened again after a fork, an unpickling or a close."""
        if self._file is None or self._file.pid != os.getpid():
            self._file = open_file(self.path)
            if self._read_head()[1] != self.digest:
                raise StoreError(f"{self.path}: another store has taken its place since it was opened")
        return self._file

    def _checked(self, name: str, numbers: ArrayLike, stop: int, count: int | None = None) -> Ints:
        """Return numbers from 0 to ``stop - 1`` as an array, ``count`` of them."""
        checked = np.asarray(numbers, np.int64).reshape(-1)
        if count is not None and len(checked) != count:
            raise StoreError(f"{self.path}: found {len(checked)} {name}, expected {count}, one per position")
        if len(checked) and checked.view(np.uint64).max() >= stop:  # unsigned: negative numbers are large
            raise StoreError(f"{self.path}: found {name} {checked.min()} to {checked.max()}, expected 0 to {stop - 1}")
        return checked

    def _damaged(self, database: str, what: str) -> StoreError:
        """Return the error of a value that fails its check."""
        return StoreError(
            f"{self.path}: damaged, {database} of {what} fails its checksum; make or copy the store again"
        )

    def _value(self, database: str, position: int) -> bytes:
        (checked,) = self._checked("positions", position, len(self))
        value = self._sealed(database, key_of(int(checked)))
        if value is None:
            raise self._damaged(database, f"position {position}")
        return value

    def _sealed(self, database: str, key: bytes) -> bytes | None:
        """Return the payload of a small value; None if it is not there."""
        file = self._file if database == HEAD and self._file is not None else self._opened()
        with store_errors(self.path):
            handle = file.database(database)
            with file.env.begin(db=handle, buffers=True) as transaction:
                value = transaction.get(key)
                payload = None if value is None else unseal(database, key, value)
        if value is not None and payload is None:
            raise self._damaged(
                database, repr(key)[2:-1] if database == HEAD else f"position {int.from_bytes(key, 'big')}"
            )
        return payload
