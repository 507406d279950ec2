"""Tars of images and their texts, as WebDataset reads and img2dataset writes them.

The members of a sample have one name but for their endings: ``000017.jpg``, ``000017.txt`` and ``000017.json``.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lightning_attr.errors import UserError, one_line, quoted, shortened
from lightning_attr.sources.base import Faults, Record, key_of, numbered
from lightning_attr.sources.places import Span
from lightning_attr.sources.table import Columns, credit
from lightning_attr.sources.tree import IMAGES, Leaf

#: A name ends at the first dot after its folders, as WebDataset has it.
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)(\.[^/]*)")
MOST_TEXT = 1 << 20
"""Bytes of a caption with what is said of it; more is none."""


@dataclass(frozen=True)
class WebDataset:
    """Shards of images.

    Args:
        shards: The tars, uncompressed.
        columns: Which keys of the JSON of a sample hold what; a ``.txt`` is its caption where there is one.
    """

    shards: Sequence[Leaf]
    columns: Columns = field(default_factory=Columns)
    kind: ClassVar[str] = "webdataset"

    def records(self, faults: Faults) -> Iterator[Record]:
        """Yield the images of all shards.

        Raises:
            UserError: A shard is no tar, or there is a fault and none is to be skipped.
        """
        shards = sorted(self.shards, key=lambda shard: f"{shard.key}/")
        yield from numbered((record for shard in shards for record in self._shard(shard, faults)), faults)

    def _shard(self, shard: Leaf, faults: Faults) -> list[Record]:
        """Return the images of a shard in the order of their keys."""
        samples: dict[str, dict[str, Span]] = {}
        again: list[tuple[str, Span]] = []
        for member in _members(shard, faults):
            match = _MEMBER.fullmatch(member.name)
            if match is None:
                continue
            sample, ending = samples.setdefault(match[1], {}), match[2].lower()
            if ending in sample and ending in IMAGES:
                again.append((match[1], member))
            sample.setdefault(ending, member)
        images = [
            (name, place) for name, sample in samples.items() for ending, place in sample.items() if ending in IMAGES
        ]
        found = [self._record(shard, name, place, samples[name]) for name, place in [*images, *again]]
        return sorted(found, key=lambda record: record.key)

    def _record(self, shard: Leaf, name: str, place: Span, sample: Mapping[str, Span]) -> Record:
        said, where = _json(sample[".json"]) if ".json" in sample else {}, str(place)
        if ".txt" in sample:
            captions = tuple(text for text in [" ".join(_text(sample[".txt"]).split())] if text)
        else:
            captions = self.columns.captions(said, where)
        licence, source = credit(said)
        groups = self.columns.groups(said, where)
        return Record(f"{shard.key}/{key_of(name)}", place, captions, groups, licence=licence, source=source)


def _members(shard: Leaf, faults: Faults) -> Iterator[Span]:
    """Yield the files in a tar up to its end, or up to where it is damaged."""
    count, damage = 0, "no end of the archive"
    try:
        with tarfile.open(shard.path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    yield Span(shard.path, member.name, member.offset_data, member.size)
                    count += 1
            end = tar.offset
        # The library takes what is no header for the end, which is zeros.
        if _only_zeros(shard.path, end):
            return
    except (tarfile.TarError, ValueError) as error:
        damage = shortened(one_line(error), 200)
    if not count:
        raise UserError(f"{shard.path}: found no members ({damage}), expected a tar that is not compressed")
    faults.add("rest of a damaged shard", f"{shard.path}: found damage after {count:,} members ({damage})")


def _only_zeros(path: Path, start: int) -> bool:
    """Return whether a file has bytes from ``start`` on, and all are zero."""
    size = 0
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(MOST_TEXT):
            if any(piece):
                return False
            size += len(piece)
    return size > 0


def _text(place: Span) -> str:
    if place.size > MOST_TEXT:
        raise UserError(f"{place}: found {place.size:,} bytes, expected at most {MOST_TEXT:,}")
    try:
        return place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: found no UTF-8 ({one_line(error)}), expected text") from error


def _json(place: Span) -> Mapping[str, Any]:
    try:
        value = json.loads(_text(place))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}: found no JSON ({shortened(one_line(error), 200)}), expected an object") from error
    if not isinstance(value, dict):
        raise UserError(f"{place}: found {quoted(value)}, expected an object")
    return value
