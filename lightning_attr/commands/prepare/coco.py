"""Make a store of images with captions in COCO's format.

    lightning-attr prepare coco --images DIR --captions FILE --out STORE

Images go in by ascending id. A run that was killed goes on when the same command is given again, and the store is then
the same as that of an uninterrupted run, bit for bit. The store knows what it was made from: where it lies already, all
captions and every byte of the image files are compared with those asked for.
"""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_attr.commands.prepare.encode import Recipe
from lightning_attr.commands.prepare.images import AS_STORED
from lightning_attr.commands.prepare.making import add_options, captioned, check_numbers, encoders, make_store
from lightning_attr.errors import UserError, one_line, quoted
from lightning_attr.options import parsed, parser
from lightning_attr.sources.base import Faults, Record
from lightning_attr.sources.coco import Coco


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    check_numbers(args)
    recipe = Recipe(*encoders(args), args.size, args.captions_per_image, args.flips)
    source, faults = Coco(args.images, args.captions), Faults(args.on_error == "skip")
    listed = list(source.records(faults))
    if args.ids is not None:
        listed = _wanted(listed, args.ids, args.captions)
    images = captioned(listed, args.limit, args.captions, faults)
    settings = {"source": source.kind}
    make_store(args.out, images, settings, AS_STORED, recipe, faults, args.workers, args.batch_size)


def _parser() -> ArgumentParser:
    of = parser("prepare coco", __doc__)
    of.add_argument("--images", type=Path, required=True, help="folder of the image files")
    of.add_argument("--captions", type=Path, required=True, help="captions in COCO's JSON format")
    add_options(of)
    of.add_argument("--size", type=int, default=64, help="side of the square images in pixels")
    of.add_argument("--captions_per_image", type=int, default=5, help="the first so many, by annotation id")
    of.add_argument("--flips", type=bool, default=True, help="store mirror images as well")
    of.add_argument("--limit", type=int | None, default=None, help="only the images with the lowest ids")
    of.add_argument("--ids", type=Path | None, default=None, help="only images whose ids this file has, one a line")
    return of


def _wanted(listed: Sequence[Record], ids: Path, captions: Path) -> list[Record]:
    """Return the images whose ids a file names."""
    if not ids.is_file():
        raise UserError(f"--ids {ids}: no such file")
    try:
        lines = ids.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--ids {ids}: found no text ({one_line(error)}), expected ids, one a line") from error
    if wrong := [line for line in lines if not (line.isascii() and line.isdecimal() and len(line) < 20)]:
        raise UserError(f"--ids {ids}: found {quoted(wrong[0])}, expected ids, one a line")
    wanted = {int(line) for line in lines}
    if missing := sorted(wanted - {image.id for image in listed}):
        raise UserError(f"--ids {ids}: found image {missing[0]}, which {captions} has not")
    return [image for image in listed if image.id in wanted]
