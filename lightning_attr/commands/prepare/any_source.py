"""Make a store of your images.

    lightning-attr prepare images SOURCE --out STORE --model PIPELINE

A source is a folder of images with a text beside each (or with one prompt for all, or in kohya's layout), a folder
with ``metadata.jsonl`` or ``metadata.csv``, Parquet files of Hugging Face datasets, tars of img2dataset, or a captions
file of COCO's. With ``--model``, images and captions are encoded as the model's own pipeline does.

Samples are in the order of their keys: paths, rows, members of shards. A run that was killed goes on when the same
command is given again, and the store is then the same as that of an uninterrupted run, bit for bit. The store knows
what it was made from: where it lies already, all captions and every byte of the images are compared with those asked
for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from lightning_attr.artifacts import read_config
from lightning_attr.commands.prepare.encode import Recipe, device, encoders_of_model, pipeline_of
from lightning_attr.commands.prepare.images import AS_STORED, Reading
from lightning_attr.commands.prepare.making import add_options, captioned, check_numbers, encoders, make_store
from lightning_attr.encoders import ImageEncoder, TextEncoder
from lightning_attr.errors import UserError, quoted
from lightning_attr.options import parsed, parser
from lightning_attr.sources.auto import Kind, open_source
from lightning_attr.sources.base import Faults
from lightning_attr.sources.table import Columns

SIZE = 64
MOST_CAPTIONS = 5


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    check_numbers(args)
    if args.crop != "centre":
        expected = "expected centre: images of a store have one shape, so there are no aspect-ratio buckets"
        raise UserError(f"--crop: found {quoted(args.crop)}, {expected}")
    image, text, size = sized_encoders(args)
    faults = Faults(args.on_error == "skip")
    columns = Columns(args.caption_column, args.group_column, args.image_column)
    source = open_source(args.source, None if args.kind == "auto" else args.kind, args.prompt, columns, faults)
    images = captioned(source.records(faults), args.limit, args.source, faults)
    captions = args.captions_per_image or min(MOST_CAPTIONS, max(len(record.captions) for record in images))
    recipe = Recipe(image, text, size, captions, args.flips, any(record.weight != 1 for record in images))
    is_coco = source.kind == "coco"  # the same store as by its own command
    reading = AS_STORED if is_coco else Reading(turned=args.exif_orientation, quick=True)
    settings = {"source": source.kind} | ({} if is_coco else {"turned": reading.turned})
    make_store(args.out, images, settings, reading, recipe, faults, args.workers, args.batch_size)


def _parser() -> ArgumentParser:
    of = parser("prepare images", __doc__)
    of.add_argument("source", help="a folder, a file, or a pattern of files with *")
    of.add_argument("--kind", type=Literal["auto"] | Kind, default="auto", help="what the source is; auto finds out")
    of.add_argument("--model", type=Path | None, default=None, help="folder of the pipeline that encodes")
    of.add_argument("--prompt", type=str | None, default=None, help="the caption of all images of a folder")
    of.add_argument("--image_column", type=str | None, default=None, help="of a table; default image, or file_name")
    of.add_argument(
        "--caption_column", type=str | None, default=None, help="of a table; default text, caption, captions or prompt"
    )
    of.add_argument("--group_column", type=str | None, default=None, help="of a table: what an image belongs to")
    add_options(of)
    of.add_argument(
        "--size",
        type=int | None,
        default=None,
        help=f"side of the square images in pixels; default {SIZE}, or the model's",
    )
    of.add_argument("--crop", default="centre", help="which part of an image is kept: its centre square")
    of.add_argument("--exif_orientation", type=bool, default=True, help="turn images as their EXIF orientation says")
    of.add_argument(
        "--captions_per_image",
        type=int | None,
        default=None,
        help=f"the first so many; default: as many as the source has, at most {MOST_CAPTIONS}",
    )
    of.add_argument("--flips", type=bool, default=False, help="store mirror images as well")
    of.add_argument("--limit", type=int | None, default=None, help="only the first so many images, by key")
    return of


def sized_encoders(args: Namespace) -> tuple[ImageEncoder, TextEncoder, int]:
    """Return the encoders that the command line asks for, and the side of the images in pixels."""
    image, text = encoders(args) if args.model is None else _of_model(args)
    if args.size is not None or args.model is None:
        return image, text, args.size or SIZE
    return image, text, _size_of(pipeline_of(args.model), image)


def _of_model(args: Namespace) -> tuple[ImageEncoder, TextEncoder]:
    """Return the encoders of a pipeline."""
    for name in ("image_encoder", "text_encoder", "encoders_from"):
        if getattr(args, name) is not None:
            raise UserError(f"--model: found --{name} as well, expected one or the other")
    image, text = encoders_of_model(args.model)
    return image.to(device(args.device)), text.to(device(args.device))


def _size_of(folder: Path, image: ImageEncoder) -> int:
    """Return the side of the images that a pipeline makes unless it is told otherwise."""
    for part in ("unet", "transformer"):
        if (config := folder / part / "config.json").is_file():
            side = read_config(config).get("sample_size")
            if type(side) is int and 0 < side < 1 << 16:
                pixels = 1 << 12
                return side * pixels // image.latent_shape(pixels)[1]
    raise UserError(f"--model {folder}: found no sample_size of its network, expected --size")
