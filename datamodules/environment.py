"""Opening LMDB files for reading: checks before LMDB touches the file, and one environment per file and process."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from datamodules.errors import StoreError

_MAGIC = 0xBEEFC0DE
MAX_DATABASES = 128


class store_errors:  # lower case as a context manager; made of a generator it would cost more than a small read
    """Turn LMDB's errors into a :class:`StoreError` that names the file."""

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, lmdb.Error):
            raise StoreError(f"{self._path}: damaged or not a store ({error})") from error


def check_file(path: str | Path) -> None:
    """Check that a file is an LMDB file and not truncated: LMDB maps it into memory and would die of SIGBUS.

    Raises:
        StoreError: It is missing, something else, or shorter than its header says.
    """
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no file"
        if os.path.exists(f"{path}.partial"):
            found = f"only {path}.partial, which its writer has not finished; run that again"
        raise StoreError(f"{path}: found {found}, expected a store")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        metas = [_read_meta(file.read(4096))]
        if metas[0] is not None:
            file.seek(metas[0].page_size)
            metas.append(_read_meta(file.read(4096)))
    pages = [meta for meta in metas if meta is not None]
    if len(pages) < 2:
        raise StoreError(f"{path}: not an LMDB file, or damaged in its first pages")
    expected = max(pages, key=lambda meta: meta.transaction).bytes
    if size < expected:
        raise StoreError(f"{path}: truncated, found {size} bytes, expected at least {expected}")


class _Meta:
    """A meta page: (page size, last page, transaction) of LMDB 0.9's format on a 64-bit little-endian machine."""

    def __init__(self, page_size: int, last_page: int, transaction: int) -> None:
        self.page_size = page_size
        self.transaction = transaction
        self.bytes = (last_page + 1) * page_size


def _read_meta(page: bytes) -> _Meta | None:
    if len(page) < 152 or struct.unpack_from("<I", page, 16)[0] != _MAGIC:
        return None
    (page_size,) = struct.unpack_from("<I", page, 40)
    last_page, transaction = struct.unpack_from("<QQ", page, 136)
    return _Meta(page_size, last_page, transaction) if 256 <= page_size <= 1 << 16 else None


class Opened:
    """An LMDB file open for reading in one process.

    Attributes:
        env: The environment.
        pid: Process that opened it. LMDB forbids using it in a forked child.
    """

    def __init__(self, path: str) -> None:
        self.pid = os.getpid()
        # Nobody writes to a finished store, so no lock (and no lock file, and no limit of readers) is needed.
        self.env = lmdb.open(
            path, subdir=False, readonly=True, create=False, lock=False, max_dbs=MAX_DATABASES, max_spare_txns=4
        )
        self._databases: dict[str, lmdb._Database] = {}

    def database(self, name: str) -> lmdb._Database:
        """Handle of a named database."""
        if name not in self._databases:
            self._databases[name] = self.env.open_db(name.encode(), create=False)
        return self._databases[name]


_opened: WeakValueDictionary[tuple[int, int], Opened] = WeakValueDictionary()


def open_file(path: str) -> Opened:
    """Open a file, or share what this process has open: LMDB refuses to open the same file twice.

    A file is known by its device and inode. One that replaces an open file is another file, and readers of the old one
    go on reading the old one.
    """
    check_file(path)
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    opened = _opened.get(key)
    if opened is not None and opened.pid != os.getpid():
        opened.env.close()  # inherited by fork: unusable here, and LMDB counts it as open
        opened = None
    if opened is None:
        with store_errors(path):
            opened = Opened(path)
        _opened[key] = opened
    return opened
