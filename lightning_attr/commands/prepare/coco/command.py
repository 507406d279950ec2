"""Make a store of images with captions in COCO's format.

    lightning-attr prepare coco --images DIR --captions FILE --out STORE

Images go in by ascending id. A run that was killed goes on when the same command is given again, and the store is then
the same as that of an uninterrupted run, bit for bit. The store knows what it was made from: where it lies already, all
captions and every byte of the image files are compared with those asked for.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from datamodules.store import Store
from datamodules.store.writer import StoreWriter
from lightning_attr.commands.prepare.coco.captions import CocoImage, read_captions
from lightning_attr.commands.prepare.coco.decoder import Decoder
from lightning_attr.commands.prepare.coco.job import Job
from lightning_attr.commands.prepare.coco.same import check_images, made_from
from lightning_attr.commands.prepare.encode import ANOTHER_OUT, Recipe, device, encoders_of, finished
from lightning_attr.console import command, made, out, summary
from lightning_attr.encoders import AutoencoderKLEncoder, CLIPText, HashedWords, PatchPCA
from lightning_attr.errors import UserError, one_line, quoted
from lightning_attr.options import at_least, parsed, parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    recipe = _recipe(args)
    images, counts = _images(args)
    skip = args.on_error == "skip"
    if finished(args.out, recipe.schema, made_from(recipe)):
        with Store(args.out) as store:
            samples = ((store.meta(place), store.file_digest(place)) for place in range(len(store)))
            check_images(args.out, ANOTHER_OUT, samples, args.images, images, recipe, skip)
        out.print(f"{args.out} is finished already: nothing to do", soft_wrap=True)
        return
    with Decoder(args.size, args.workers) as decoder, StoreWriter(args.out, recipe.schema) as writer:
        job = Job(args.images, images, recipe, args.batch_size, skip, decoder, writer, counts)
        counts["already there"] = len(writer)
        job.check_partial()
        job.settle_encoders()
        job.store()
        if len(writer) == 0:
            raise UserError(f"{args.images}: none of {len(images)} images could be stored")
        stored = len(writer)
        writer.finish(+job.texts)
    _report(args.out, stored, counts + job.texts)
    made([args.out], command("inspect", args.out))


def _parser() -> ArgumentParser:
    of = parser("prepare coco", __doc__)
    of.add_argument("--images", type=Path, required=True, help="folder of the image files")
    of.add_argument("--captions", type=Path, required=True, help="captions in COCO's JSON format")
    of.add_argument("--out", type=Path, required=True, help="the store to make")
    of.add_argument(
        "--image_encoder", type=PatchPCA | AutoencoderKLEncoder | None, default=None, help="default PatchPCA"
    )
    of.add_argument("--text_encoder", type=HashedWords | CLIPText | None, default=None, help="default HashedWords")
    of.add_argument("--encoders_from", type=Path | None, default=None, help="take both encoders from this store")
    of.add_argument("--size", type=int, default=64, help="side of the square images in pixels")
    of.add_argument("--captions_per_image", type=int, default=5, help="the first so many, by annotation id")
    of.add_argument("--flips", type=bool, default=True, help="store mirror images as well")
    of.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="decoding processes; 0: none")
    of.add_argument("--batch_size", type=int, default=64, help="images encoded at once")
    of.add_argument(
        "--on_error",
        type=Literal["skip", "fail"],
        default="fail",
        help="what to do about an image that cannot be stored",
    )
    of.add_argument("--limit", type=int | None, default=None, help="only the images with the lowest ids")
    of.add_argument("--ids", type=Path | None, default=None, help="only images whose ids this file has, one a line")
    of.add_argument("--device", default="cpu", help="where to encode")
    return of


def _recipe(args: Namespace) -> Recipe:
    """Return the encoders and shapes that the command line asks for."""
    at_least(args, size=1, captions_per_image=1, batch_size=1, limit=1, workers=0)
    if args.encoders_from and (args.image_encoder or args.text_encoder):
        raise UserError("--encoders_from: found --image_encoder or --text_encoder as well, expected one or the other")
    if args.encoders_from:
        image, text = encoders_of(args.encoders_from)
    else:
        image = args.image_encoder or PatchPCA()
        text = args.text_encoder or HashedWords()
    where = device(args.device)
    return Recipe(image.to(where), text.to(where), args.size, args.captions_per_image, args.flips)


def _images(args: Namespace) -> tuple[list[CocoImage], Counter[str]]:
    """Return the images that have captions, and the count of those that have none."""
    if not args.images.is_dir():
        raise UserError(f"--images {args.images}: expected a folder")
    listed = read_captions(args.captions)
    if args.ids is not None:
        listed = _wanted(listed, args.ids, args.captions)
    listed = listed[: args.limit]
    images = [image for image in listed if image.captions]
    if not images:
        raise UserError(f"{args.captions}: found {len(listed)} images and none with a caption")
    if args.on_error == "fail" and len(images) < len(listed):
        bare = next(image for image in listed if not image.captions)
        raise UserError(f"{args.captions}: image {bare.id} ({bare.file_name}) has no caption (see --on_error)")
    return images, Counter({"skipped: no caption": len(listed) - len(images)})


def _wanted(listed: list[CocoImage], ids: Path, captions: Path) -> list[CocoImage]:
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


def _report(path: Path, stored: int, counts: Counter[str]) -> None:
    """Print the closing table; counts other than the samples are those of this run."""
    rows: list[tuple[str, object]] = [("samples", stored)]
    rows += [(name, count) for name, count in sorted(counts.items()) if count]
    rows.append(("size", f"{path.stat().st_size / 1e6:,.1f} MB"))
    summary(str(path), rows)
