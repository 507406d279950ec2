"""Columns of tables of images: which one holds the captions, and what is in a row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from datamodules.store.records import check_text
from lightning_attr.errors import UserError, quoted, shortened

CAPTIONS = ("text", "caption", "captions", "prompt")
"""What columns of captions are called, the likeliest first."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are asked for by name.

    Args:
        caption: Holds a caption, or a list of them; None is the first of ``CAPTIONS`` that is there.
        group: Holds the group of an image, or a list of its groups.
        image: Holds the image; None is the usual one.
    """

    caption: str | None = None
    group: str | None = None
    image: str | None = None

    def check(self, names: Collection[str], where: str) -> None:
        """Check that a table has the columns that are named, and captions.

        Args:
            names: Of its columns.
            where: Which table, for messages.

        Raises:
            UserError: It has not.
        """
        found = f"{where}: found columns {shortened(', '.join(map(repr, names)), 200) or 'none'}"
        for option, name in (("image", self.image), ("caption", self.caption), ("group", self.group)):
            if name is not None and name not in names:
                raise UserError(f"{found}, expected {name!r} as --{option}_column says")
        if self.caption_of(names) is None:
            raise UserError(f"{found}, expected one of {', '.join(CAPTIONS)}, or --caption_column")

    def caption_of(self, names: Collection[str]) -> str | None:
        """Return which of the columns of a table has captions; None where none has."""
        return self.caption or next((name for name in CAPTIONS if name in names), None)

    def captions(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """Return the captions of a row; blank ones are left out."""
        name = self.caption_of(row)
        texts = [] if name is None else _texts(row.get(name), f"{where}: {name}")
        return tuple(text for each in texts if (text := " ".join(each.split())))

    def groups(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """Return the groups of a row."""
        value = None if self.group is None else row.get(self.group)
        return tuple(dict.fromkeys(_texts(value, f"{where}: {self.group}", numbers=True)))


def credit(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the licence of an image and where it is from, as far as a row says so under a usual name."""
    licence, source = (
        next((value for name in names if isinstance(value := row.get(name), str) and value), None)
        for names in (("license", "licence", "LICENSE"), ("url", "source"))
    )
    return licence, source


def _texts(value: object, where: str, numbers: bool = False) -> list[str]:
    """Return what a cell holds as texts: one, several, or none.

    Raises:
        UserError: It holds something else.
    """
    texts = []
    for each in [] if value is None else value if isinstance(value, list) else [value]:
        text = str(each) if numbers and type(each) is int else each
        if not isinstance(text, str):
            raise UserError(f"{where}: found {quoted(each)}, expected text")
        check_text(where, text)
        texts.append(text)
    return texts
