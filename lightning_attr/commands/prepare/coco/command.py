"""Make a store of images with captions in COCO's format.

    python -m lightning_attr.commands.prepare.coco --images DIR --captions FILE --out STORE

Images go in by ascending id. A run that was killed goes on when the same command is given again, and the store is then
the same as that of an uninterrupted run, bit for bit.
"""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datamodules.store.writer import StoreWriter
from lightning_attr.commands.prepare.coco.captions import CocoImage, read_captions
from lightning_attr.commands.prepare.coco.decoder import Decoder
from lightning_attr.commands.prepare.coco.job import Job
from lightning_attr.commands.prepare.encode import Recipe, device, encoders_of, finished
from lightning_attr.console import out, summary
from lightning_attr.encoders import parse_image_encoder, parse_text_encoder
from lightning_attr.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(arguments)
    recipe = _recipe(args)
    if finished(args.out, recipe.schema):
        out.print(f"{args.out} is finished already: nothing to do", soft_wrap=True)
        return
    images, counts = _images(args)
    with Decoder(args.size, args.workers) as decoder, StoreWriter(args.out, recipe.schema) as writer:
        skip = args.on_error == "skip"
        job = Job(args.images, images, recipe, args.batch_size, skip, decoder, writer, counts)
        counts["already there"] = len(writer)
        job.check_partial()
        job.settle_encoders()
        job.store()
        if len(writer) == 0:
            raise UserError(f"{args.images}: none of {len(images)} images could be stored")
        stored = len(writer)
        writer.finish()
    _report(args.out, stored, counts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_attr.commands.prepare.coco",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the image files")
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="captions in COCO's JSON format")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="the store to make")
    parser.add_argument(
        "--image-encoder", metavar="SPEC", help="patch-pca:patch=4,channels=4 (default) or kl:NAME_OR_FOLDER"
    )
    parser.add_argument(
        "--text-encoder", metavar="SPEC", help="hashed-words:tokens=16,dim=64 (default) or clip:NAME_OR_FOLDER"
    )
    parser.add_argument("--encoders-from", type=Path, metavar="STORE", help="take both encoders from this store")
    parser.add_argument("--size", type=int, default=64, help="side of the square images in pixels")
    parser.add_argument("--captions-per-image", type=int, default=5, help="the first so many, by annotation id")
    parser.add_argument(
        "--flips", action=argparse.BooleanOptionalAction, default=True, help="store mirror images as well"
    )
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="decoding processes; 0: none")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at once")
    parser.add_argument(
        "--on-error", choices=("skip", "fail"), default="fail", help="what to do about an image that cannot be stored"
    )
    parser.add_argument("--limit", type=int, help="only the images with the lowest ids")
    parser.add_argument("--ids", type=Path, metavar="FILE", help="only images whose ids this file has, one a line")
    parser.add_argument("--device", default="cpu", help="where to encode")
    return parser


def _recipe(args: argparse.Namespace) -> Recipe:
    """Encoders and shapes that the command line asks for."""
    for name, least in (("size", 1), ("captions_per_image", 1), ("batch_size", 1), ("limit", 1), ("workers", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}: found {value}, expected at least {least}")
    if args.encoders_from and (args.image_encoder or args.text_encoder):
        raise UserError("--encoders-from: found --image-encoder or --text-encoder as well, expected one or the other")
    if args.encoders_from:
        image, text = encoders_of(args.encoders_from)
    else:
        image = parse_image_encoder(args.image_encoder or "patch-pca")
        text = parse_text_encoder(args.text_encoder or "hashed-words")
    where = device(args.device)
    return Recipe(image.to(where), text.to(where), args.size, args.captions_per_image, args.flips)


def _images(args: argparse.Namespace) -> tuple[list[CocoImage], Counter[str]]:
    """Images that have captions, and the count of those that have none."""
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
        raise UserError(f"{args.captions}: image {bare.id} ({bare.file_name}) has no caption (see --on-error)")
    return images, Counter({"skipped: no caption": len(listed) - len(images)})


def _wanted(listed: list[CocoImage], ids: Path, captions: Path) -> list[CocoImage]:
    """Images whose ids a file names."""
    if not ids.is_file():
        raise UserError(f"--ids {ids}: no such file")
    lines = ids.read_text().split()
    if wrong := [line for line in lines if not line.isdecimal()]:
        raise UserError(f"--ids {ids}: found {wrong[0]!r}, expected ids, one a line")
    wanted = {int(line) for line in lines}
    if missing := sorted(wanted - {image.id for image in listed}):
        raise UserError(f"--ids {ids}: found image {missing[0]}, which {captions} has not")
    return [image for image in listed if image.id in wanted]


def _report(path: Path, stored: int, counts: Counter[str]) -> None:
    """Closing table; counts other than the samples are those of this run."""
    rows: list[tuple[str, object]] = [("samples", stored)]
    rows += [(name, count) for name, count in sorted(counts.items()) if count]
    rows.append(("size", f"{path.stat().st_size / 1e6:,.1f} MB"))
    summary(str(path), rows)
