"""Measure how many planted near-duplicates are found, and how many of what is found was planted.

    python -m tools.near_duplicates --images FOLDER     # photographs, at 64 x 64 pixels
    python -m tools.near_duplicates --drawings 2000 --seed 7

Of every tenth image a copy is planted, of one kind at a time, and two images that are linked count as found. The limits
were chosen on COCO's train2017 and on drawings of plain shapes: these are to be measured on others.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from rich.table import Table

from lightning_attr.console import print_table
from lightning_attr.drawings.drawing import draw_one, nearly, render
from lightning_attr.near_duplicates import BITS, DISTANCE, TOLERANCE, colours, near_pairs, perceptual_hash

SIDE, ARTISTS, EVERY = 64, 60, 10

Alter = Callable[[Image.Image], Image.Image]


def compressed(quality: int) -> Alter:
    """Return what saves an image as a JPEG and reads it again."""

    def alter(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")

    return alter


def cropped(share: float) -> Alter:
    """Return what cuts so much of each side in all, half of it at each end, and makes the rest as large as before."""

    def alter(image: Image.Image) -> Image.Image:
        edge = image.width * share / 2
        box = (edge, edge, image.width - edge, image.height - edge)
        return image.resize(image.size, Image.Resampling.BILINEAR, box=box)

    return alter


def brighter(factor: float) -> Alter:
    """Return what multiplies all values."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


#: Kinds of copies by name.
COPIES: Mapping[str, Alter] = {
    "cropped by 4%": cropped(0.04),
    "JPEG of quality 30": compressed(30),
    "20% darker": brighter(0.8),
    "20% brighter": brighter(1.2),
    "cropped by 5%, 10% brighter, JPEG of quality 60": lambda image: compressed(60)(
        brighter(1.1)(cropped(0.05)(image))
    ),
    "cropped by 8%": cropped(0.08),
}


def measured(images: Sequence[Image.Image], copies: Sequence[Image.Image]) -> tuple[int, int, int]:
    """Return how many copies are linked to their image, how many pairs are linked in all, and the pairs of no copy.

    Args:
        images: All images.
        copies: Of every tenth of them, in order.
    """
    everything = [*images, *copies]
    hashes = np.array([perceptual_hash(each) for each in everything], np.uint64)
    fields = [colours(each) for each in everything]
    linked = {
        pair
        for pair in near_pairs(hashes, DISTANCE)
        if np.square(fields[pair[0]] - fields[pair[1]]).mean() <= TOLERANCE**2
    }
    planted = {(EVERY * place, len(images) + place) for place in range(len(copies))}
    return len(linked & planted), len(linked), sum(other < len(images) for _, other in linked)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.near_duplicates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--images", type=Path, help="a folder of images")
    of.add_argument("--drawings", type=int, help="so many drawings")
    parser.add_argument("--seed", type=int, default=1, help="of the drawings")
    args = parser.parse_args(arguments)
    kinds: dict[str, list[Image.Image]] = {}
    if args.images is not None:
        images = [_opened(path) for path in sorted(args.images.iterdir())]
    else:
        drawings = [draw_one(args.seed, id, range(ARTISTS)) for id in range(args.drawings)]
        images = [render(each, SIDE) for each in drawings]
        kinds["drawn again"] = [render(nearly(each, 1), SIDE) for each in drawings[::EVERY]]
    kinds |= {name: [alter(image) for image in images[::EVERY]] for name, alter in COPIES.items()}
    table = Table("the copy", "planted", "found", "recall", "pairs found", "of no copy", "precision")
    for name, copies in kinds.items():
        found, pairs, others = measured(images, copies)
        shares = f"{found / len(copies):.1%}", f"{found / max(pairs, 1):.1%}"
        table.add_row(name, str(len(copies)), str(found), shares[0], str(pairs), str(others), shares[1])
    table.title = f"{len(images):,} images, at most {DISTANCE} of {BITS} bits and {TOLERANCE} of colour"
    print_table(table)


def _opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
