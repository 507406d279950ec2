"""Parquet files of images as Hugging Face datasets write them: the bytes of each in its row, or a path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from lightning_attr.errors import UserError, one_line, shortened
from lightning_attr.extras import optional
from lightning_attr.sources.base import Faults, Record, numbered
from lightning_attr.sources.places import Cell, Named, Place
from lightning_attr.sources.table import Columns, credit
from lightning_attr.sources.tree import Leaf, within

IMAGE = "image"
CREDIT = ("license", "licence", "LICENSE", "url", "source")
ROWS = 1024
_BYTES, _TEXTS = ("binary", "large_binary", "binary_view"), ("string", "large_string", "string_view")


@dataclass(frozen=True)
class Parquet:
    """Tables of images.

    Args:
        files: The Parquet files.
        columns: Which columns hold what.
    """

    files: Sequence[Leaf]
    columns: Columns = field(default_factory=Columns)
    kind: ClassVar[str] = "parquet"

    def records(self, faults: Faults) -> Iterator[Record]:
        """Yield a record for each row of all files; its key is the file's and the number of the row.

        Raises:
            UserError: A file is none of Parquet or has not the columns.
        """
        files = sorted(self.files, key=lambda leaf: f"{leaf.key}/")
        yield from numbered((record for leaf in files for record in self._file(leaf)), faults)

    def _file(self, leaf: Leaf) -> Iterator[Record]:
        arrow = optional("pyarrow.parquet", "sources", str(leaf.path))
        try:
            yield from self._rows(leaf, arrow.ParquetFile(leaf.path))
        except (OSError, ValueError) as error:  # as pyarrow's own errors are
            if isinstance(error, UserError):
                raise
            raise UserError(f"{leaf.path}: found no readable Parquet ({shortened(one_line(error), 200)})") from error

    def _rows(self, leaf: Leaf, file: Any) -> Iterator[Record]:
        columns = replace(self.columns, image=self.columns.image or IMAGE)
        names = file.schema_arrow.names
        columns.check(names, str(leaf.path))
        image = _Images(leaf, file, columns.image or "")
        wanted = [columns.caption_of(names), columns.group, *(name for name in CREDIT if name in names)]
        read = sorted({*(name for name in wanted if name is not None), *image.read})
        digits, row = len(str(file.metadata.num_rows)), 0
        for group in range(file.num_row_groups):
            place = 0
            for batch in file.iter_batches(ROWS, [group], read):
                for values in batch.to_pylist():
                    where = f"{leaf.path}: row {row}"
                    licence, source = credit(values)
                    yield Record(
                        f"{leaf.key}/{row:0{digits}}",
                        image.place(group, place, values, where),
                        columns.captions(values, where),
                        columns.groups(values, where),
                        licence=licence,
                        source=source or image.path(values),
                    )
                    row, place = row + 1, place + 1


class _Images:
    """Where the images of a column are: bytes, a path, or a struct of both, of which Hugging Face fills one.

    Args:
        leaf: The Parquet file.
        file: The same, opened by pyarrow.
        column: The column.

    Raises:
        UserError: It is of another type.
    """

    def __init__(self, leaf: Leaf, file: Any, column: str) -> None:
        kind = file.schema_arrow.field(column).type
        struct = str(kind).startswith("struct<")
        parts = {each.name: str(each.type) for each in kind} if struct else {"": str(kind)}
        self._file, self._column = leaf.path, column
        self._bytes = next((name for name, type in parts.items() if name in ("bytes", "") and type in _BYTES), None)
        self._path = next((name for name, type in parts.items() if name in ("path", "") and type in _TEXTS), None)
        if self._bytes is None and self._path is None:
            found = f"{leaf.path}: found {column} of type {shortened(str(kind), 200)}"
            raise UserError(f"{found}, expected bytes, paths, or a struct of both")
        groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
        self._has_bytes = [self._bytes is not None and not _is_null(group, self._name(self._bytes)) for group in groups]
        self.read = [self._name(self._path)] if self._path is not None else []

    def path(self, row: Mapping[str, Any]) -> str | None:
        """Return the path that a row names."""
        value = row.get(self._column)
        return value.get("path") if isinstance(value, dict) else value

    def place(self, group: int, place: int, row: Mapping[str, Any], where: str) -> Place:
        """Return where the image of a row of a group is; paths begin at the folder of the file."""
        path = self.path(row)
        if path is None or self._has_bytes[group]:
            return Cell(self._file, self._column, self._bytes or "", group, place)
        return Named(self._file.parent, within(self._file.parent, path, where))

    def _name(self, part: str) -> str:
        return f"{self._column}.{part}" if part else self._column


def _is_null(group: Any, column: str) -> bool:
    """Return whether a column of a row group is known to hold nothing."""
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema == column:
            return chunk.statistics is not None and chunk.statistics.null_count == group.num_rows
    return False
