"""The digest of a store, and the check of everything that it covers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import lmdb
from lmdb.verify import VerifyError
from lmdb.verify import verify as verify_structure
from xxhash import xxh3_128

from datamodules.store.environment import Opened
from datamodules.store.layout import HEAD, MADE_FROM, META, THUMB, Blocks, Bytes, key_of, unseal
from datamodules.store.records import Schema

Progress = Callable[[int, int], None]

#: Keys of the head that the digest leaves out: it is of what a store holds, wherever that is from.
UNCOVERED = frozenset({b"complete", MADE_FROM.encode()})


class Digest:
    """Running digest of a store: over keys and checksums of all values, in a fixed order."""

    def __init__(self) -> None:
        self._hash = xxh3_128()

    def add(self, database: str, key: bytes, checksums: Bytes) -> None:
        """Take in the checksums that a value starts with."""
        self._hash.update(f"{database}/{key.hex()}:{len(checksums)}:".encode())
        self._hash.update(checksums)

    def hexdigest(self) -> str:
        """Return the digest so far."""
        return f"xxh3-128:{self._hash.hexdigest()}"


def head_keys(transaction: lmdb.Transaction[memoryview], head: lmdb._Database) -> Iterator[bytes]:
    """Yield the keys of the head."""
    with transaction.cursor(head) as cursor:
        yield from (bytes(key) for key in cursor.iternext(keys=True, values=False))


def places(schema: Schema, count: int) -> Iterator[tuple[str, bytes, Blocks | None, int]]:
    """Yield every value outside the head: (database, key, layout of a field's block, samples in it)."""
    for name in sorted(schema.fields):
        blocks = Blocks.of(name, schema.fields[name])
        for block, first in enumerate(range(0, count, blocks.samples)):
            yield name, key_of(block), blocks, min(blocks.samples, count - first)
    for name in (META, THUMB):
        for position in range(count):
            yield name, key_of(position), None, 1


def compute_digest(
    transaction: lmdb.Transaction[memoryview], database: Callable[[str], lmdb._Database], schema: Schema, count: int
) -> str:
    """Compute the digest of a store whose values are all there; this reads checksums only."""
    digest = Digest()
    for key in head_keys(transaction, database(HEAD)):
        if key not in UNCOVERED:
            digest.add(HEAD, key, transaction.get(key, b"", db=database(HEAD))[:8])
    for name, key, blocks, _ in places(schema, count):
        value = transaction.get(key, b"", db=database(name))
        digest.add(name, key, value[: blocks.header if blocks else 8])
    return digest.hexdigest()


@dataclass(frozen=True)
class Damage:
    """Something that is wrong in a store."""

    database: str
    what: str

    @staticmethod
    def summary(damage: list[Damage], most: int = 5) -> str:
        """Name the first few, and how many more there are."""
        shown = "; ".join(f"{item.database}: {item.what}" for item in damage[:most])
        return shown + (f"; and {len(damage) - most} more" if len(damage) > most else "")


def check_values(
    path: str, file: Opened, schema: Schema, count: int, expected: str, progress: Progress | None
) -> list[Damage]:
    """Read and check every value, the structure of the file, and the digest."""
    damage = check_structure(path)
    if damage:
        return damage  # LMDB is not safe to use on a damaged structure
    for name in (HEAD, META, THUMB, *schema.fields):
        file.database(name)  # opened before the transaction: one cannot be opened within another
    with contextlib.suppress(lmdb.NotFoundError):  # of stores of before
        file.database(MADE_FROM)
    with file.env.begin(buffers=True) as transaction:
        damage = damaged_values(transaction, file.database, schema, count, progress)
        found = expected if damage else compute_digest(transaction, file.database, schema, count)
    return damage if found == expected else [Damage(HEAD, f"found digest {found}, expected {expected}")]


def damaged_values(
    transaction: lmdb.Transaction[memoryview],
    database: Callable[[str], lmdb._Database],
    schema: Schema,
    count: int,
    progress: Progress | None = None,
) -> list[Damage]:
    """Read every value, and return those whose checksums are wrong."""
    damage = []
    keys = list(head_keys(transaction, database(HEAD)))
    for key in keys:
        if unseal(HEAD, key, transaction.get(key, b"", db=database(HEAD))) is None:
            damage.append(Damage(HEAD, key.decode(errors="replace")))
    if MADE_FROM.encode() in keys:
        with transaction.cursor(database(MADE_FROM)) as cursor:
            wrong = (bytes(key) for key, value in cursor if unseal(MADE_FROM, bytes(key), value) is None)
            damage += [Damage(MADE_FROM, f"position {int.from_bytes(key, 'big')}") for key in wrong]
    todo = list(places(schema, count))
    for done, (name, key, blocks, held) in enumerate(todo, 1):
        if not _is_right(name, key, blocks, held, transaction.get(key, b"", db=database(name))):
            first = int.from_bytes(key, "big") * (blocks.samples if blocks else 1)
            damage.append(Damage(name, f"positions {first} to {first + held - 1}"))
        if progress is not None and (done % 64 == 0 or done == len(todo)):
            progress(done, len(todo))
    return damage


def _is_right(name: str, key: bytes, blocks: Blocks | None, held: int, value: Bytes) -> bool:
    if blocks is None:
        return unseal(name, key, value) is not None
    return blocks.decode(int.from_bytes(key, "big"), held, value) is not None


def check_structure(path: str) -> list[Damage]:
    """Check how an LMDB file is put together, without LMDB."""
    try:
        return [Damage("structure", problem) for problem in verify_structure(path, subdir=False)]  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return [Damage("structure", str(error))]
