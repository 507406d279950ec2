"""A folder of images, with a text of the same name beside each, or with one prompt for all.

In kohya's layout all images lie in folders such as ``10_style``: the number says how often an epoch shows them, and
what follows it is the caption of images without a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_attr.errors import UserError, one_line
from lightning_attr.sources.base import Faults, Record, numbered
from lightning_attr.sources.tree import IMAGES, Leaf

_REPEATS = re.compile(r"([1-9]\d{0,2})_(.+)")


@dataclass(frozen=True)
class Folder:
    """A folder of images, in folders or not.

    Args:
        path: What it is called in messages.
        files: All files of the folder, in the order of their keys.
        prompt: The caption of all images; None takes those of the texts.
    """

    path: str
    files: Sequence[Leaf]
    prompt: str | None = None
    kind: ClassVar[str] = "folder"

    def records(self, faults: Faults) -> Iterator[Record]:
        """Yield the images; each line of a text is a caption.

        Raises:
            UserError: There are no images, a text cannot be read, or there is a fault and none is to be skipped.
        """
        images = [leaf for leaf in self.files if leaf.suffix in IMAGES]
        if not images:
            raise UserError(f"{self.path}: found no images, expected files such as {', '.join(sorted(IMAGES)[:5])}")
        texts = {leaf.stem: leaf.path for leaf in self.files if leaf.suffix == ".txt"}
        repeats = [_REPEATS.fullmatch(leaf.folders[0]) if len(leaf.folders) == 1 else None for leaf in images]
        if self.prompt is None and not texts and not all(repeats):
            beside = f"{images[0].stem}.txt beside {images[0].key}"
            raise UserError(f"{self.path}: found no texts, expected captions such as {beside}, or --prompt for all")
        yield from numbered(self._all(images, texts, repeats), faults)

    def _all(self, images: list[Leaf], texts: dict[str, Path], repeats: list[re.Match[str] | None]) -> Iterator[Record]:
        kohya = all(repeats)
        for leaf, found in zip(images, repeats, strict=True):
            weight, words = (int(found[1]), found[2]) if kohya and found else (1, "")
            if self.prompt is not None:
                captions: tuple[str, ...] = (self.prompt,)
            else:
                text = texts.get(leaf.stem)
                captions = _lines(text) if text is not None else ()
                captions = captions or ((words,) if words else ())
            yield Record(leaf.key, leaf.path, captions, leaf.folders, weight)


def _lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a text that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: found no UTF-8 ({one_line(error)}), expected a caption") from error
    return tuple(text for line in lines if (text := " ".join(line.split())))
