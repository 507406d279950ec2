"""One folder, one process."""

from __future__ import annotations

import fcntl
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lightning_attr.errors import UserError, one_line

LOCK = "lock"
"""The file by which a process holds a folder, and that says who does."""

#: The folders that are held by this process, with the thread that does.
_held: set[tuple[int, str]] = set()


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder; the system lets go of it when the process ends, however that happens.

    Who holds it already may do so again, as a sweep does that runs an entry itself.

    Args:
        folder: The folder; made where there is none.
        patience: How many seconds to wait for another process that holds it.

    Raises:
        UserError: Another process still holds it, or the file system has no locks.
    """
    if (own := (threading.get_ident(), os.path.realpath(folder))) in _held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / LOCK).open("a+") as file:
        while not _taken(file, folder):
            if time.monotonic() >= deadline:
                raise UserError(f"{folder}: another process is running it, {_holder(file) or 'just begun'}")
            time.sleep(min(0.2, patience))
        file.truncate(0)
        print(f"{platform.node()}:{os.getpid()}", file=file, flush=True)
        _held.add(own)
        try:
            yield
        finally:
            _held.discard(own)
            # Forked workers may still have the file open: closing it here would not give up the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


def _taken(file: TextIO, folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{folder}: found a file system without locks ({one_line(error)}), expected one with flock"
        ) from error
    return True


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read(200).strip()
