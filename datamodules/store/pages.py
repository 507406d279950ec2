"""The pages of a finished LMDB file that LMDB itself trusts: its first two and those of its trees.

LMDB has no checksums, and dies of SIGBUS or a failed assertion on some flipped bits in these pages. So a finished store
ends in a seal: their numbers and a checksum over them, compared before LMDB touches the file. Values are not read here;
they have checksums of their own.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64

from lightning_attr.errors import StoreError

_MAGIC = 0xBEEFC0DE
_OVERFLOW = 0x04
_SEAL = struct.Struct("<QQ8s")
_SEAL_MAGIC = b"SEALED01"

Pages = NDArray[np.int64]


class _Head(NamedTuple):
    """What a first page of an LMDB file says (format of LMDB 0.9 on a 64-bit little-endian machine)."""

    page_size: int
    last_page: int
    transaction: int


def check_length(path: str | Path) -> int:
    """Return the bytes of an LMDB file's pages, which it must have at least: LMDB maps the file into memory.

    Raises:
        StoreError: The file is something else, or truncated.
    """
    with open(path, "rb", buffering=0) as file:
        head = _committed(file.fileno())
        size = os.fstat(file.fileno()).st_size
    if head is None:
        raise StoreError(f"{path}: not an LMDB file, or damaged in its first pages")
    expected = (head.last_page + 1) * head.page_size
    if size < expected:
        raise StoreError(f"{path}: truncated, found {size} bytes, expected at least {expected}")
    return expected


def seal(path: str) -> None:
    """Append the seal to a compacted file, which has no free pages."""
    length = check_length(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        head = _committed(descriptor)
        assert head is not None
        pages = _tree_pages(descriptor, head)
        tail = pages.astype("<i8").tobytes()
        tail += _SEAL.pack(_checksum(descriptor, head.page_size, pages), len(pages), _SEAL_MAGIC)
        os.ftruncate(descriptor, length)
        os.pwrite(descriptor, tail, length)
    finally:
        os.close(descriptor)


def check_seal(path: str) -> None:
    """Compare the seal with the pages.

    Raises:
        StoreError: The file is not a finished store, truncated, or damaged in a page of its trees.
    """
    length = check_length(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, _SEAL.size, max(length, size - _SEAL.size))
        if len(end) < _SEAL.size or end[-8:] != _SEAL_MAGIC:
            raise StoreError(f"{path}: truncated or not a finished store, found no seal at its end")
        checksum, count, _ = _SEAL.unpack(end)
        if size != length + 8 * count + _SEAL.size:
            raise StoreError(f"{path}: damaged, found {size} bytes, expected {length + 8 * count + _SEAL.size}")
        pages = np.frombuffer(os.pread(descriptor, 8 * count, length), "<i8")
        head = _committed(descriptor)
        if head is None or not _possible(pages, head) or checksum != _checksum(descriptor, head.page_size, pages):
            raise StoreError(f"{path}: damaged in its trees or small values; make or copy the store again")
    finally:
        os.close(descriptor)


def _committed(descriptor: int) -> _Head | None:
    """Return the first page of the last commit; None if this is no LMDB file."""
    first = _head(os.pread(descriptor, 152, 0))
    second = _head(os.pread(descriptor, 152, first.page_size)) if first else None
    return max(first, second, key=lambda head: head.transaction) if first and second else None


def _head(page: bytes) -> _Head | None:
    if len(page) < 152 or struct.unpack_from("<I", page, 16)[0] != _MAGIC:
        return None
    head = _Head(*struct.unpack_from("<I", page, 40), *struct.unpack_from("<QQ", page, 136))
    return head if 256 <= head.page_size <= 1 << 16 else None


def _tree_pages(descriptor: int, head: _Head) -> Pages:
    """Return the numbers of all pages but those that hold large values."""
    pages = [0, 1]
    page = 2
    while page <= head.last_page:
        flags, extent = struct.unpack_from("<HI", os.pread(descriptor, 16, page * head.page_size), 10)
        if flags & _OVERFLOW:
            page += max(extent, 1)
        else:
            pages.append(page)
            page += 1
    return np.array(pages, np.int64)


def _possible(pages: Pages, head: _Head) -> bool:
    """Return whether a seal may name these pages: ascending ones of the file, the first two among them."""
    within = len(pages) >= 2 and (pages[:2] == [0, 1]).all() and pages[-1] <= head.last_page
    return bool(within and (pages[1:] > pages[:-1]).all())


def _checksum(descriptor: int, page_size: int, pages: Pages) -> int:
    """Return the checksum over the numbers and contents of pages."""
    checksum = xxh3_64(pages.astype("<i8").tobytes())
    for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
        checksum.update(os.pread(descriptor, len(run) * page_size, int(run[0]) * page_size))
    return checksum.intdigest()
