"""Writing a store: in groups, resumable after a kill, and complete only when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

import lmdb
import numpy as np

from datamodules.store.digest import Damage, check_structure, compute_digest, damaged_values
from datamodules.store.environment import store_errors
from datamodules.store.layout import (
    HEAD,
    MADE_FROM,
    MAX_DATABASES,
    META,
    RESERVED,
    THUMB,
    Blocks,
    check_schema,
    decode_json,
    decode_record,
    decode_schema,
    encode_index,
    encode_json,
    encode_schema,
    encoder_key,
    key_of,
    seal,
    unseal,
)
from datamodules.store.pages import check_length
from datamodules.store.pages import seal as seal_pages
from datamodules.store.records import Meta, Sample, Schema, first_difference
from lightning_attr.errors import StoreError

GROUP_BYTES = 32 * 1024 * 1024
GROUP_SAMPLES = 1024
GROUP_SECONDS = 5.0
MAP_BYTES = 64 * 1024 * 1024


class StoreWriter:
    """Writes samples to ``<path>.partial``, and makes ``path`` of it when all are there.

    A killed writer is resumed by making another of the same path and schema: ``last_id`` says where it stopped.
    As a context manager it closes without finishing, and keeps what was written.

    Args:
        path: The store to make.
        schema: Its fields and encoders.

    Raises:
        StoreError: ``path`` exists, another writer is at it, the unfinished one has another schema or is damaged, or
            the system refuses to write it.
    """

    def __init__(self, path: str | Path, schema: Schema) -> None:
        self.path = str(path)
        self.partial = f"{path}.partial"
        self.schema = schema
        check_schema(self.path, schema)
        self._blocks = {name: Blocks.of(name, field) for name, field in schema.fields.items()}
        # Blocks of all fields start together at multiples of the largest.
        self._unit = max(blocks.samples for blocks in self._blocks.values())
        fitting = min(GROUP_SAMPLES, GROUP_BYTES // sum(field.nbytes for field in schema.fields.values()))
        self._group = max(1, fitting // self._unit) * self._unit
        self._ids: list[int] = []
        self._caption_counts: list[int] = []
        # Samples from the last multiple of the unit on; ``_committed`` of them are in the file, in blocks still short.
        self._tail: list[Sample] = []
        self._committed = 0
        self._flushed_at = time.monotonic()
        self._failed = False
        self._env: lmdb.Environment | None = None
        self._lock: IO[bytes] | None = _take_lock(self.partial)
        self._is_new = os.path.getsize(self.partial) == 0
        try:
            if os.path.exists(path):
                raise StoreError(f"{path}: found it finished already, expected no file; remove it to write it anew")
            self._open()
        except BaseException:
            if self._is_new:  # half of a first page is no store
                os.truncate(self.partial, 0)
                self._failed = True
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of samples written, those of earlier runs included."""
        return len(self._ids)

    @property
    def last_id(self) -> int | None:
        """Return the id of the last sample written, in this run or an earlier one; None if there is none."""
        return self._ids[-1] if self._ids else None

    def write(self, sample: Sample) -> None:
        """Add a sample. Ids must ascend.

        Raises:
            StoreError: The id does not, or the arrays are not what the schema says.
        """
        self._check_sample(sample)
        arrays = {name: np.array(sample.arrays[name]) for name in self._blocks}  # copies: the caller may reuse his
        self._tail.append(replace(sample, arrays=arrays))
        self._ids.append(sample.meta.id)
        self._caption_counts.append(len(sample.meta.captions))
        if len(self._tail) >= self._group or time.monotonic() - self._flushed_at > GROUP_SECONDS:
            self.flush()

    def put_encoder_state(self, name: str, state: bytes) -> None:
        """Keep the fitted numbers of an encoder, in place of what is there of that name."""
        self._put({(HEAD, encoder_key(name)): state})

    def encoder_state(self, name: str) -> bytes | None:
        """Return what :meth:`put_encoder_state` kept, in this run or an earlier one.

        Raises:
            StoreError: It is damaged.
        """
        with self._transaction() as transaction:
            return self._get(transaction, HEAD, encoder_key(name))

    def put_made_from(self, settings: Mapping[str, Any]) -> None:
        """Keep what the store is made from, anything that JSON can hold: no part of its digest."""
        self._put({(HEAD, MADE_FROM.encode()): encode_json(dict(settings))})

    @property
    def made_from(self) -> dict[str, Any]:
        """Return what :meth:`put_made_from` kept, in this run or an earlier one; empty where that was nothing."""
        with self._transaction() as transaction:
            record = self._get(transaction, HEAD, MADE_FROM.encode())
        return {} if record is None else decode_json(self.partial, MADE_FROM, record, decode_record)

    def written(self) -> Iterator[tuple[Meta, str]]:
        """Yield what earlier runs wrote of each sample: its meta, and the digest of the file that it was made from."""
        with self._transaction() as transaction:
            for position in range(len(self) - len(self._tail) + self._committed):
                digest = self._get(transaction, MADE_FROM, key_of(position)) or b""
                yield self._meta(transaction, position), digest.decode(errors="replace")

    def flush(self) -> None:
        """Commit what was written so far. Done often enough that a kill loses a few seconds' worth."""
        first = len(self) - len(self._tail)
        smalls: dict[tuple[str, bytes], bytes] = {}
        for position, sample in enumerate(self._tail[self._committed :], first + self._committed):
            smalls[META, key_of(position)] = encode_json(sample.meta.to_json())
            smalls[THUMB, key_of(position)] = sample.thumb
            if sample.made_from:
                smalls[MADE_FROM, key_of(position)] = sample.made_from.encode()
        if smalls:
            self._put(smalls, self._tail_blocks(first))
        whole = len(self._tail) // self._unit * self._unit
        del self._tail[:whole]
        self._committed = len(self._tail)
        self._flushed_at = time.monotonic()

    def finish(self, notes: Mapping[str, int] | None = None) -> None:
        """Make the store: index, digest, a compact copy, and only then its name. Closes the writer.

        Args:
            notes: Counts of what befell the samples, by name, for whoever looks at the store; no part of its digest.
        """
        self.flush()
        index = encode_index(np.array(self._ids, np.int64), np.array(self._caption_counts, np.int32))
        self._put({(HEAD, b"index"): index})
        with self._transaction() as transaction:
            digest = compute_digest(transaction, self._databases.__getitem__, self.schema, len(self))
        record = {"count": len(self), "digest": digest, **({"notes": dict(notes)} if notes else {})}
        self._put({(HEAD, b"complete"): encode_json(record)})
        self._publish()
        self.close()

    def close(self) -> None:
        """Commit and let go of the file. Without :meth:`finish`, it stays unfinished and can be resumed."""
        try:
            if self._env is not None and not self._failed and os.path.exists(self.partial):
                self.flush()
        finally:
            if self._env is not None:
                self._env.close()
            self._env = None
            if self._lock is not None:
                # Forked workers may still hold the descriptor: closing it here would not give up the lock.
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                self._lock.close()
                self._lock = None

    def _open(self) -> None:
        if not self._is_new:
            check_length(self.partial)
            if damage := check_structure(self.partial):
                raise self._damaged(damage)
        map_bytes = max(MAP_BYTES, 2 * os.path.getsize(self.partial))
        with store_errors(self.partial, writing=True):
            # The lock that is held keeps other writers out, and nobody reads an unfinished store.
            self._env = lmdb.open(self.partial, map_size=map_bytes, subdir=False, lock=False, max_dbs=MAX_DATABASES)
            names = (*sorted(RESERVED), *self._blocks)
            self._databases = {name: self._env.open_db(name.encode()) for name in names}
            self._resume()

    def _resume(self) -> None:
        """Take up what an earlier writer left, or start."""
        with self._transaction() as transaction:
            record = self._get(transaction, HEAD, b"schema")
            if record is not None and (found := decode_schema(self.partial, record)) != self.schema:
                difference = first_difference(found.to_json(), self.schema.to_json())
                raise StoreError(f"{self.partial}: {difference}; remove it to start anew")
            count = transaction.stat(self._databases[META])["entries"] if record is not None else 0
            if damage := damaged_values(transaction, self._databases.__getitem__, self.schema, count):
                raise self._damaged(damage)
            metas = [self._meta(transaction, position) for position in range(count)]
            self._ids = [meta.id for meta in metas]
            self._caption_counts = [len(meta.captions) for meta in metas]
            first = count // self._unit * self._unit
            self._tail = list(self._stored(transaction, metas, first))
        self._committed = len(self._tail)
        # An earlier writer may have been killed while finishing.
        assert self._env is not None
        with self._env.begin(self._databases[HEAD], write=True) as transaction:
            transaction.delete(b"complete")
        self._put({(HEAD, b"schema"): encode_schema(self.schema)})

    def _stored(self, transaction: lmdb.Transaction[memoryview], metas: list[Meta], first: int) -> Iterator[Sample]:
        """Yield the samples from ``first`` on, which fill no whole unit yet, read back from the file."""
        arrays: dict[str, list[Any]] = {name: [] for name in self._blocks}
        for name, blocks in self._blocks.items():
            for start in range(first, len(metas), blocks.samples):
                held, block = min(blocks.samples, len(metas) - start), start // blocks.samples
                value = transaction.get(key_of(block), db=self._databases[name])
                found = None if value is None else blocks.decode(block, held, value)
                assert found is not None  # all values were checked
                arrays[name].extend(found)
        for place, meta in enumerate(metas[first:]):
            thumb = self._get(transaction, THUMB, key_of(first + place))
            yield Sample(meta, {name: values[place] for name, values in arrays.items()}, thumb or b"")

    def _meta(self, transaction: lmdb.Transaction[memoryview], position: int) -> Meta:
        payload = self._get(transaction, META, key_of(position)) or b""
        return decode_json(self.partial, f"meta of position {position}", payload, Meta.from_json)

    def _tail_blocks(self, first: int) -> dict[tuple[str, bytes], bytes]:
        """Return the values of the blocks that hold samples not in the file yet."""
        values: dict[tuple[str, bytes], bytes] = {}
        for name, blocks in self._blocks.items():
            for start in range(self._committed // blocks.samples * blocks.samples, len(self._tail), blocks.samples):
                block = (first + start) // blocks.samples
                samples = self._tail[start : start + blocks.samples]
                values[name, key_of(block)] = blocks.encode(block, np.stack([item.arrays[name] for item in samples]))
        return values

    def _put(
        self, smalls: dict[tuple[str, bytes], bytes], blocks: dict[tuple[str, bytes], bytes] | None = None
    ) -> None:
        """Commit values in one transaction; small ones get their checksum here."""
        assert self._env is not None
        values = {(name, key): seal(name, key, value) for (name, key), value in smalls.items()} | (blocks or {})
        self._failed = True
        with store_errors(self.partial, writing=True):
            while True:
                try:
                    with self._env.begin(write=True) as transaction:
                        for (name, key), value in values.items():
                            transaction.put(key, value, db=self._databases[name])
                    break
                except lmdb.MapFullError:  # nothing of the transaction was kept
                    self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._failed = False

    def _get(self, transaction: lmdb.Transaction[memoryview], database: str, key: bytes) -> bytes | None:
        value = transaction.get(key, db=self._databases[database])
        payload = None if value is None else unseal(database, key, value)
        if value is not None and payload is None:
            raise self._damaged([Damage(database, repr(bytes(key))[2:-1])])
        return payload

    def _damaged(self, damage: list[Damage]) -> StoreError:
        return StoreError(f"{self.partial}: damaged: {Damage.summary(damage)}; remove it to start anew")

    def _transaction(self) -> lmdb.Transaction[memoryview]:
        assert self._env is not None
        return self._env.begin(buffers=True)

    def _publish(self) -> None:
        """Copy, sync, rename: a kill at any point leaves the unfinished file or the finished one."""
        assert self._env is not None
        copy = f"{self.path}.compact"
        _remove(copy)
        with store_errors(self.path, writing=True):
            try:
                self._env.copy(copy, compact=True)
                seal_pages(copy)
                _sync(copy)
                os.replace(copy, self.path)
            except BaseException:
                _remove(copy)
                raise
            _sync(os.path.dirname(os.path.abspath(self.path)))
            os.remove(self.partial)

    def _check_sample(self, sample: Sample) -> None:
        place = f"{self.path}: sample {sample.meta.id}"
        if self._env is None:
            raise StoreError(f"{place}: the writer is closed")
        if self.last_id is not None and sample.meta.id <= self.last_id:
            raise StoreError(f"{place} comes after {self.last_id}, expected ascending ids")
        if sample.arrays.keys() != self._blocks.keys():
            raise StoreError(f"{place}: found arrays {sorted(sample.arrays)}, expected {sorted(self._blocks)}")
        for name, field in self.schema.fields.items():
            array = sample.arrays[name]
            if (array.shape, array.dtype.name) != (field.shape, field.dtype):
                raise StoreError(
                    f"{place}: found {name} {list(array.shape)} {array.dtype.name}, "
                    f"expected {list(field.shape)} {field.dtype}"
                )
            if field.role is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise StoreError(f"{place}: found an infinite number or NaN in {name}, expected finite ones")
        most = self.schema.captions
        if self.schema.conditions and len(sample.meta.captions) > most:
            raise StoreError(f"{place}: found {len(sample.meta.captions)} captions, expected at most {most}")


def _take_lock(partial: str) -> IO[bytes]:
    """Open the unfinished file, making an empty one if need be, and lock it against other writers."""
    while True:
        with store_errors(partial, writing=True):
            os.makedirs(os.path.dirname(os.path.abspath(partial)), exist_ok=True)
            file = open(partial, "ab")  # noqa: SIM115 (the lock lives as long as the writer)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise StoreError(f"{partial}: another process is writing it; wait for it or stop it") from error
        # A writer that finished in between has removed the file that was locked here.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(partial).st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _sync(path: str) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
