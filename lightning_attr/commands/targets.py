"""Where commands write: over nothing but what is of the same kind, and into no folder of something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lightning_attr.errors import UserError


def expect_like(option: str, path: Path | None, what: str, read: Callable[[Path], object]) -> None:
    """Refuse to write over a file of another kind.

    Args:
        option: What names the file.
        path: The file; None is none.
        what: What may be there, in words, such as "the numbers of a table".
        read: Reads such a file.

    Raises:
        UserError: There is something else: another file, a folder, a pipe, a link to nothing.
    """
    if path is None or not os.path.lexists(path):
        return
    try:
        if not path.is_file():  # to read a pipe would wait for ever
            raise UserError(f"{path}: found no file")
        read(path)
    except (UserError, OSError) as error:
        raise UserError(f"{option} {path}: found something else there, expected nothing or {what}") from error


def expect_own(option: str, folder: Path, *files: str) -> None:
    """Refuse to write into a folder of something else.

    Args:
        option: What names the folder.
        folder: Where a command writes; it may not be there yet.
        files: Patterns of files, one of which is in a folder of ours.

    Raises:
        UserError: It is where the user stands, or holds other things only.
    """
    if folder == Path():
        raise UserError(f"{option}: found the folder where you are, expected one of its own")
    ours = (place for pattern in files for place in folder.glob(pattern))
    if folder.is_dir() and any(folder.iterdir()) and next(ours, None) is None:
        raise UserError(f"{option}: found {folder} with other things in it, expected a new folder")
