"""How values lie in a store file: names, blocks of samples, and checksums.

Every checksum is an xxh3 seeded by where the value belongs (database and key). A value that damage has moved under
another key therefore fails its check just as a changed one does.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from datamodules.store.records import IMPLIED, Field, Schema
from lightning_attr.errors import StoreError, one_line, quoted, shortened

T = TypeVar("T")

FORMAT = "lightning-attr store"
#: Version 2 has the roles of fields in its schema; version 1, those that the names of its fields imply.
VERSION = 2

HEAD = "head"
"""Database of the schema, the index, the ``complete`` record, what the store was made from and the encoder states."""
META = "meta"
THUMB = "thumb"
MADE_FROM = "made_from"
"""Database of the digests of the files that samples were made from; also the key in the head of what all were."""
RESERVED = frozenset({HEAD, META, THUMB, MADE_FROM})

MAX_DATABASES = 128

BLOCK_SAMPLES = 64
BLOCK_BYTES = 4 * 1024 * 1024  # pieces under 3 MB are copied at half the speed

Bytes = bytes | memoryview


def key_of(number: int) -> bytes:
    """Return the key of a block or position; big-endian, so that LMDB's order is the order of numbers."""
    return number.to_bytes(8, "big")


def encoder_key(name: str) -> bytes:
    """Return the key of an encoder's state in the head."""
    return f"encoder/{name}".encode()


def seed_of(*place: str) -> int:
    """Return the seed of the checksums of a place; room is left above it to add numbers of rows in int64."""
    return xxh3_64_intdigest("/".join(place).encode()) >> 2


def seal(database: str, key: bytes, payload: bytes) -> bytes:
    """Put a checksum before a small value."""
    return xxh3_64_digest(payload, seed_of(database, key.hex())) + payload


def unseal(database: str, key: bytes, value: Bytes) -> bytes | None:
    """Take the checksum off a small value; None if it is wrong."""
    payload = bytes(value[8:])
    return payload if bytes(value[:8]) == xxh3_64_digest(payload, seed_of(database, key.hex())) else None


def encode_json(value: Any) -> bytes:
    """Encode as JSON in the one form that checksums and comparisons use."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def encode_schema(schema: Schema) -> bytes:
    """Encode a schema, in version 1 where that says all: a store that is made again keeps its digest."""
    record = {"format": FORMAT, "version": VERSION, **schema.to_json()}
    if all(field.role == IMPLIED.get(name) for name, field in schema.fields.items()):
        record["version"] = 1
        for field in record["fields"].values():
            del field["role"]
    return encode_json(record)


def decode_schema(path: str, payload: bytes) -> Schema:
    """Undo :func:`encode_schema`.

    Raises:
        StoreError: The record is of another format or version, or says what no schema can.
    """
    schema = decode_json(path, "schema", payload, _schema)
    check_schema(path, schema)
    return schema


def _schema(value: Any) -> Schema:
    value = decode_record(value)
    name, version = value.pop("format", None), value.pop("version", None)
    if name != FORMAT or isinstance(version, bool) or version not in (1, VERSION):
        found = f"format {quoted(name)} version {quoted(version)}"
        raise StoreError(f"found {found}, expected {FORMAT!r} version {VERSION}")
    fields = value.get("fields")
    if version == 1 and isinstance(fields, dict):
        value["fields"] = {
            name: {**field, "role": IMPLIED.get(name)} if isinstance(field, dict) else field
            for name, field in fields.items()
        }
    return Schema.from_json(value)


def check_schema(path: str, schema: Schema) -> None:
    """Check that a store can have the fields of a schema.

    Raises:
        StoreError: There are none or too many, or one has a name that the store itself uses.
    """
    if not schema.fields:
        raise StoreError(f"{path}: found a schema without fields, expected at least one")
    if taken := sorted(RESERVED & schema.fields.keys()):
        raise StoreError(f"{path}: found a field named {taken[0]!r}, which the store itself uses")
    if len(schema.fields) + len(RESERVED) > MAX_DATABASES:
        raise StoreError(f"{path}: found {len(schema.fields)} fields, expected at most {MAX_DATABASES - len(RESERVED)}")


def decode_json(path: str, what: str, payload: bytes, build: Callable[[Any], T]) -> T:
    """Return what ``build`` makes of a JSON record.

    Raises:
        StoreError: It is no JSON, or ``build`` refuses it.
    """
    try:
        return build(json.loads(payload))
    except (ValueError, RecursionError) as error:  # of text, of JSON, and our own
        raise StoreError(f"{path}: {what}: {shortened(one_line(error), 300)}") from error


def decode_record(value: Any) -> dict[str, Any]:
    """Return a record that is an object."""
    if not isinstance(value, dict):
        raise StoreError(f"found {quoted(value)}, expected an object")
    return value


def decode_complete(value: Any) -> tuple[int, str, dict[str, int]]:
    """Return what the ``complete`` record says: the number of samples, the digest, and notes by name."""
    record = decode_record(value)
    count, digest, notes = record.get("count", -1), record.get("digest"), decode_record(record.get("notes", {}))
    counts = (count, *notes.values())
    if not all(type(number) is int and number >= 0 for number in counts) or not isinstance(digest, str):
        raise StoreError(f"found {quoted(value)}, expected a number of samples and a digest")
    return count, digest, notes


@dataclass(frozen=True)
class Pieces:
    """Parts of a block that can be checked alone: its samples, or the rows of its samples.

    Args:
        count: Pieces of a full block.
        nbytes: Bytes of a piece.
        table: Where in a value the checksums of the pieces start.
        seed: Added to the number of a piece, counted over the whole field, it is the seed of its checksum.
    """

    count: int
    nbytes: int
    table: int
    seed: int

    def checksums(self, block: int, payload: memoryview) -> bytes:
        """Return the checksums of the pieces of a block; zero for those that a short block lacks."""
        first = self.seed + block * self.count
        sums = [
            xxh3_64_intdigest(payload[place * self.nbytes : (place + 1) * self.nbytes], first + place)
            for place in range(len(payload) // self.nbytes)
        ]
        return struct.pack(f"<{self.count}Q", *sums, *[0] * (self.count - len(sums)))


@dataclass(frozen=True)
class Blocks:
    """Layout of one field: values of ``samples`` samples each, of which the last may be short.

    A value is: checksum of the payload, of each sample, of each row; then the payload. So whole blocks, samples and
    rows can each be read with one check and without the rest.
    """

    name: str
    field: Field
    samples: int

    @classmethod
    def of(cls, name: str, field: Field) -> Blocks:
        """Choose the layout of a field: blocks of at most 64 samples and about 4 MiB, always a power of two."""
        fitting = max(1, min(BLOCK_SAMPLES, BLOCK_BYTES // field.nbytes))
        return cls(name, field, 1 << (fitting.bit_length() - 1))

    @cached_property
    def seed(self) -> int:
        """Return the seed of block 0; that of block n is n higher."""
        return seed_of(self.name, "block")

    @cached_property
    def by_sample(self) -> Pieces:
        """Return the samples of a block as pieces."""
        return Pieces(self.samples, self.field.nbytes, 8, seed_of(self.name, "sample"))

    @cached_property
    def by_row(self) -> Pieces:
        """Return the rows of the samples of a block as pieces."""
        rows = self.field.shape[0]
        table = 8 * (1 + self.samples)
        return Pieces(self.samples * rows, self.field.nbytes // rows, table, seed_of(self.name, "row"))

    @cached_property
    def header(self) -> int:
        """Return the bytes of a value before its payload."""
        return 8 * (1 + self.by_sample.count + self.by_row.count)

    def held(self, block: int, total: int) -> int:
        """Return how many samples a block holds in a store of ``total`` samples."""
        return min(self.samples, total - block * self.samples)

    def encode(self, block: int, arrays: NDArray[Any]) -> bytes:
        """Encode the value of a block from its samples' arrays [n, *shape]."""
        payload = np.ascontiguousarray(arrays).tobytes()
        view = memoryview(payload)
        whole = xxh3_64_intdigest(payload, self.seed + block).to_bytes(8, "little")
        return whole + self.by_sample.checksums(block, view) + self.by_row.checksums(block, view) + payload

    def decode(self, block: int, held: int, value: Bytes) -> NDArray[Any] | None:
        """Decode the arrays [held, *shape] of a block, a copy; return None unless every checksum in it is right."""
        if len(value) != self.header + held * self.field.nbytes:
            return None
        arrays = np.frombuffer(bytes(value[self.header :]), self.field.dtype).reshape(held, *self.field.shape)
        return arrays if self.encode(block, arrays) == bytes(value) else None


def encode_index(ids: NDArray[np.int64], caption_counts: NDArray[np.int32]) -> bytes:
    """Encode the index of all samples: ids, then numbers of captions."""
    return ids.astype("<i8").tobytes() + caption_counts.astype("<i4").tobytes()


def decode_index(
    path: str, payload: bytes | None, count: int, schema: Schema
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Undo :func:`encode_index`; return read-only arrays of ``count`` numbers.

    Raises:
        StoreError: It has other lengths, or numbers that no store of the schema has.
    """
    found = 0 if payload is None else len(payload)
    if payload is None or found != 12 * count:
        raise StoreError(f"{path}: damaged, found an index of {found} bytes, expected {12 * count}")
    ids = np.frombuffer(payload, "<i8", count)
    counts = np.frombuffer(payload, "<i4", count, offset=8 * count)
    if count and (ids[0] < 0 or (ids[1:] <= ids[:-1]).any()):
        raise StoreError(f"{path}: index: found ids that do not ascend from 0 or more, expected those of a store")
    most = schema.captions if schema.conditions else np.iinfo(np.int32).max
    if count and (counts.min() < 0 or counts.max() > most):
        raise StoreError(f"{path}: index: found {counts.min()} to {counts.max()} captions, expected 0 to {most}")
    return ids, counts
