"""Opening LMDB files for reading: checks before LMDB touches the file, and one environment per file and process."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from datamodules.store.layout import MAX_DATABASES
from datamodules.store.pages import check_seal
from lightning_attr.errors import StoreError, one_line


class store_errors:  # lower case as a context manager; made of a generator it would cost more than a small read
    """Turn LMDB's errors and the system's into a :class:`StoreError` that names the file.

    Args:
        path: The file.
        writing: Whether it is being written.
    """

    def __init__(self, path: str | Path, writing: bool = False) -> None:
        self._path = path
        self._full = _FULL if writing else frozenset()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, (OSError, lmdb.Error)):
            return
        code = (error.errno if isinstance(error, OSError) else getattr(error, "code", 0)) or 0
        if code in self._full:
            raise StoreError(
                f"{self._path}: no space left on the device, or no more is allowed; what was written before is kept: "
                "make room and run the same command again"
            ) from error
        if code > 0 and code != errno.EINVAL:  # of the system; LMDB's own are negative
            raise StoreError(f"{self._path}: {os.strerror(code)}") from error
        raise StoreError(f"{self._path}: damaged or not a store ({one_line(error)})") from error


#: LMDB calls it an input/output error when the system wrote less than it was given.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def check_file(path: str) -> None:
    """Check all of a file that LMDB relies on, before LMDB maps it into memory.

    Raises:
        StoreError: It is missing, something else, truncated or damaged.
    """
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "something else" if os.path.exists(path) else "no file"
        if os.path.exists(f"{path}.partial"):
            found = f"only {path}.partial, which its writer has not finished; run that again"
        raise StoreError(f"{path}: found {found}, expected a store")
    if path.endswith(".partial"):
        raise StoreError(f"{path}: unfinished, its writer was stopped; run it again to finish the store")
    with store_errors(path):
        check_seal(path)


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
        """Return the handle of a named database."""
        if name not in self._databases:
            self._databases[name] = self.env.open_db(name.encode(), create=False)
        return self._databases[name]


_opened: WeakValueDictionary[tuple[int, int], Opened] = WeakValueDictionary()


def open_file(path: str) -> Opened:
    """Open a file, or share what this process has open: LMDB refuses to open the same file twice.

    A file is known by its device and inode. One that replaces an open file is another file, and readers of the old one
    go on reading the old one.
    """
    opened = None
    with contextlib.suppress(FileNotFoundError):
        opened = _opened.get(_identity(path))
    if opened is not None and opened.pid != os.getpid():
        opened.env.close()  # inherited by fork: unusable here, and LMDB counts it as open
        opened = None
    if opened is None:
        check_file(path)
        with store_errors(path):
            opened = Opened(path)
        _opened[_identity(path)] = opened
    return opened


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
