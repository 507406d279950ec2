"""The files of a folder, in the order of their keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lightning_attr.errors import UserError, quoted
from lightning_attr.sources.base import Faults, key_of

#: Endings of image files; those that Pillow cannot read are not passed over, but found unreadable.
IMAGES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jxl"]
)


@dataclass(frozen=True)
class Leaf:
    """A file of a folder, by its key: the path within the folder, with ``/`` and composed accents."""

    key: str
    path: Path

    @property
    def suffix(self) -> str:
        """Return the ending in small letters."""
        return PurePosixPath(self.key).suffix.lower()

    @property
    def stem(self) -> str:
        """Return the key without the ending."""
        return str(PurePosixPath(self.key).with_suffix(""))

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the folders that it lies in, from the outermost."""
        return tuple(str(parent) for parent in reversed(PurePosixPath(self.key).parents[:-1]))


def leaves(folder: Path, faults: Faults) -> list[Leaf]:
    """Return all files of a folder in ascending order of their keys.

    Names that begin with a dot are passed over. Links are followed, but no folder is entered twice, so that a link to a
    folder above has an end.

    Raises:
        UserError: A folder cannot be read, or a name is no Unicode and no fault is to be skipped.
    """
    return sorted(_leaves(folder, "", set(), faults), key=lambda leaf: leaf.key)


def _leaves(folder: Path, prefix: str, entered: set[tuple[int, int]], faults: Faults) -> Iterator[Leaf]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as listed:
        entries = sorted((entry for entry in listed if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        try:
            key = prefix + key_of(entry.name)
        except UserError as error:
            faults.add("name without Unicode", f"{folder}: {error}")
            continue
        if os.path.isdir(entry.path):
            yield from _leaves(folder / entry.name, f"{key}/", entered, faults)
        elif entry.is_symlink() or entry.is_file():  # a link that leads nowhere is an image that is missing
            yield Leaf(key, folder / entry.name)


def within(folder: Path, name: str, where: str) -> str:
    """Return the name of a file, which must stay in its folder.

    Args:
        folder: The folder.
        name: As a file of others says it.
        where: Who says so, for messages.

    Raises:
        UserError: It leads out of the folder, or is none.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
        raise UserError(f"{where}: found the path {quoted(name)}, expected one within {folder}")
    return name
