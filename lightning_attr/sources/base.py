"""What a source is: images with their captions, in the order of the keys that it knows them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from unicodedata import normalize

from datamodules.store.records import Meta
from lightning_attr.console import warn
from lightning_attr.errors import UserError, quoted
from lightning_attr.sources.places import Place

NAMED = 20
"""Images left out for one reason that are named; the rest is only counted."""


@dataclass(frozen=True)
class Record:
    """An image of a source, before it is decoded.

    Args:
        key: What the source knows it by: a relative path, a row, a member of a shard.
        place: Where its bytes lie.
        captions: In the order of the source; there may be none.
        groups: What it belongs to, such as its folders.
        weight: How often training shows it for once that it shows others.
        licence: Licence of the image, if known.
        source: Where the image is from, if known.
        id: Of the sample.
    """

    key: str
    place: Place
    captions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    weight: int = 1
    licence: str | None = None
    source: str | None = None
    id: int = 0

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Return what a store keeps beside captions, licence, source and weight."""
        groups = {"groups": list(self.groups)} if self.groups else {}
        return {"key": self.key, **groups}

    def meta(self, most: int) -> Meta:
        """Return what a store keeps of it with at most so many captions."""
        return Meta(self.id, self.captions[:most], self.licence, self.source, self.attributes)


class Faults:
    """What cannot be stored: the first ends the run, or each is counted.

    Args:
        skip: Whether they are counted.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, message: str) -> None:
        """Take note of a fault.

        Args:
            kind: By which it is counted.
            message: Which image, and what is wrong with it.

        Raises:
            UserError: Faults are not skipped.
        """
        if not self.skip:
            raise UserError(f"{message} (see --on_error)")
        kind = f"skipped: {kind}"
        self.counts[kind] += 1
        if self.counts[kind] <= NAMED:
            warn(f"skipped {message}")


class Source(Protocol):
    """Where images and captions come from."""

    @property
    def kind(self) -> str:
        """Return the name of the kind, which a store keeps."""
        ...

    def records(self, faults: Faults) -> Iterator[Record]:
        """Yield all images in ascending order of their ids, those without captions included.

        Raises:
            UserError: The source is not what it should be, or has a fault where none is to be skipped.
        """
        ...


def numbered(records: Iterable[Record], faults: Faults) -> Iterator[Record]:
    """Give records the positions of their keys as ids; of records of one key the first is kept.

    Args:
        records: In ascending order of their keys.
        faults: Takes note of keys that are there twice.
    """
    last, id = None, 0
    for record in records:
        if record.key == last:
            faults.add("key of another image", f"{record.place}: found a second image of key {quoted(last)}")
            continue
        yield replace(record, id=id)
        last, id = record.key, id + 1


def key_of(name: str) -> str:
    """Return the key of a name: the same however its accents are composed, as macOS and Linux do not agree on that.

    Raises:
        UserError: It is no Unicode, as names of files may be.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"found the name {quoted(name)}, expected one in Unicode") from None
    return normalize("NFC", name)
