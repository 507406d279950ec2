"""Where the bytes of an image lie: anything with ``read_bytes()``, as a path has it, and a name for messages.

Decoding processes open these, so they can be pickled, and this module imports nothing slow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from unicodedata import normalize


class Damaged(ValueError):
    """A file that holds many images is damaged where one of them lies."""


class Place(Protocol):
    """Where the bytes of an image lie; ``str()`` names it in messages."""

    def read_bytes(self) -> bytes:
        """Return the bytes of the image file.

        Raises:
            OSError: They cannot be read.
            Damaged: The file that holds them is damaged.
        """
        ...


@dataclass(frozen=True)
class Named:
    """A file in a folder, though the accents in its name be composed in another way on the disk."""

    folder: Path
    name: str

    def read_bytes(self) -> bytes:
        """Return the bytes of the file."""
        return locate(self.folder, self.name).read_bytes()

    def __str__(self) -> str:
        return str(self.folder / self.name)


@dataclass(frozen=True)
class Span:
    """A stretch of a file, such as a member of a tar that is not compressed."""

    path: Path
    name: str
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """Return the bytes of the stretch."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


@dataclass(frozen=True)
class Cell:
    """The bytes in a row of a column of a Parquet file; they are read fastest in ascending order.

    Args:
        path: The file.
        column: The column.
        part: The field of it where it is a struct, such as ``bytes``; empty where it is not.
        group: The row group.
        row: The row within that.
    """

    path: Path
    column: str
    part: str
    group: int
    row: int

    def read_bytes(self) -> bytes:
        """Return the bytes of the cell.

        Raises:
            FileNotFoundError: There are none.
            Damaged: The file is, there or before that.
        """
        status, cell = os.stat(self.path), (self.path, self.column, self.part, self.group)
        version = status.st_ino, status.st_mtime_ns
        if (column := _opened(cell, version)).passed(self.row):
            _opened.cache_clear()
            column = _opened(cell, version)
        if (data := column.at(self.row)) is None:
            raise FileNotFoundError("no image in it")
        return data

    def __str__(self) -> str:
        return f"{self.path}: {self.column} of row {self.row} of row group {self.group}"


class _Column:
    """A column of a row group, read forward in pieces: a whole one may be larger than memory."""

    PIECE = 16

    def __init__(self, path: Path, column: str, part: str, group: int) -> None:
        file = import_module("pyarrow.parquet").ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        name = f"{column}.{part}" if part else column
        self._pieces: Iterator[Any] = file.iter_batches(self.PIECE, [group], [name], use_threads=False)
        self._part = part
        self._read = 0
        self._damage: Damaged | None = None
        self._piece: Any = None

    def at(self, row: int) -> bytes | None:
        """Return the value of a row, none before the piece that was read last."""
        while row >= self._read:
            if (batch := self._next()) is None:
                raise FileNotFoundError("no such row")
            piece = batch.column(0)
            self._piece = piece.field(self._part) if self._part else piece
            self._read += len(piece)
        return self._piece[row - self._read].as_py()  # type: ignore[no-any-return]

    def _next(self) -> Any:
        """Return the next piece, None after the last; nothing behind a damaged one can be read."""
        if self._damage is None:
            try:
                return next(self._pieces, None)
            except (OSError, ValueError) as error:  # as pyarrow's own errors are
                self._damage = Damaged(f"damaged file ({' '.join(str(error).split())[:100]})")
        raise self._damage

    def passed(self, row: int) -> bool:
        """Return whether a row lies before the piece that was read last."""
        return self._piece is not None and row < self._read - len(self._piece)


@lru_cache(maxsize=2)
def _opened(cell: tuple[Path, str, str, int], version: tuple[int, int]) -> _Column:
    """Return a column of a row group of a file as it is now."""
    return _Column(*cell)


def locate(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, though the accents in its name be composed in another way on the disk."""
    if os.path.exists(folder / name):
        return folder / name
    for part in Path(name).parts:
        folder /= part if os.path.exists(folder / part) else _composed(folder).get(normalize("NFC", part), part)
    return folder


@lru_cache(maxsize=1024)
def _composed(folder: Path) -> dict[str, str]:
    """Return the names in a folder by their composed form."""
    return {normalize("NFC", name): name for name in os.listdir(folder)} if folder.is_dir() else {}
