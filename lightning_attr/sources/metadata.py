"""A folder of images with ``metadata.jsonl`` or ``metadata.csv``, as ImageFolder of Hugging Face datasets has it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from lightning_attr.errors import UserError, one_line, quoted, shortened
from lightning_attr.sources.base import Faults, Record, key_of, numbered
from lightning_attr.sources.places import Named
from lightning_attr.sources.table import Columns, credit
from lightning_attr.sources.tree import IMAGES, Leaf, within

NAMES = ("metadata.jsonl", "metadata.csv")
IMAGE = "file_name"


@dataclass(frozen=True)
class Metadata:
    """A folder of images and of tables of them, each of which names images in its own folder.

    Args:
        path: What the folder is called in messages.
        files: All files of the folder, in the order of their keys.
        columns: Which columns hold what.
    """

    path: str
    files: Sequence[Leaf]
    columns: Columns = field(default_factory=Columns)
    kind: ClassVar[str] = "metadata"

    def records(self, faults: Faults) -> Iterator[Record]:
        """Yield the images that the tables name, and those that none names as images without a caption.

        Raises:
            UserError: A table is missing or is none, it names files elsewhere, or there is a fault and none is to be
                skipped.
        """
        tables = [leaf for leaf in self.files if leaf.path.name in NAMES]
        if not tables:
            raise UserError(f"{self.path}: found none of {', '.join(NAMES)}, expected one")
        found = [record for table in tables for record in self._rows(table)]
        listed = {record.key for record in found}
        found += [
            Record(leaf.key, leaf.path) for leaf in self.files if leaf.suffix in IMAGES and leaf.key not in listed
        ]
        yield from numbered(sorted(found, key=lambda record: record.key), faults)

    def _rows(self, table: Leaf) -> Iterator[Record]:
        prefix = table.key.removesuffix(table.path.name)
        columns = replace(self.columns, image=self.columns.image or IMAGE)
        for number, row in _table(table.path):
            where = f"{table.path}: line {number}"
            columns.check(row, where)
            name = row[columns.image or ""]
            if not isinstance(name, str):
                raise UserError(f"{where}: found {columns.image} {quoted(name)}, expected the path of an image")
            name = within(table.path.parent, name, where)
            key = prefix + key_of(Path(name).as_posix())
            groups = columns.groups(row, where)
            captions, (licence, source) = columns.captions(row, where), credit(row)
            yield Record(key, Named(table.path.parent, name), captions, groups, licence=licence, source=source)


def _table(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows of a table, with their lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row or None in row.values():
                        raise UserError(f"{path}: line {reader.line_num}: found more or fewer cells than in line 1")
                    yield reader.line_num, row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise UserError(f"{path}: line {number}: found {quoted(value)}, expected an object")
                    yield number, value
    except UserError:
        raise
    except (ValueError, RecursionError, csv.Error) as error:
        expected = "CSV" if path.suffix == ".csv" else "a JSON object in each line"
        raise UserError(
            f"{path}: found something else ({shortened(one_line(error), 200)}), expected {expected}"
        ) from error
