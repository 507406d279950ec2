"""What ``prepare coco`` and ``prepare images`` share: options, and a store from records."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from datamodules.store import Store
from datamodules.store.writer import StoreWriter
from lightning_attr.commands.prepare.decoder import Decoder
from lightning_attr.commands.prepare.encode import ANOTHER_OUT, Recipe, device, encoders_of, finished
from lightning_attr.commands.prepare.images import Reading
from lightning_attr.commands.prepare.job import Job
from lightning_attr.commands.prepare.same import check_images, made_from
from lightning_attr.console import command, made, out, summary
from lightning_attr.encoders import (
    AutoencoderKLEncoder,
    CLIPText,
    HashedWords,
    ImageEncoder,
    PatchPCA,
    PipelineText,
    TextEncoder,
)
from lightning_attr.errors import UserError
from lightning_attr.options import at_least
from lightning_attr.sources.base import Faults, Record


def add_options(of: ArgumentParser) -> None:
    """Add the options that all sources have."""
    of.add_argument("--out", type=Path, required=True, help="the store to make")
    of.add_argument(
        "--image_encoder", type=PatchPCA | AutoencoderKLEncoder | None, default=None, help="default PatchPCA"
    )
    of.add_argument(
        "--text_encoder", type=HashedWords | CLIPText | PipelineText | None, default=None, help="default HashedWords"
    )
    of.add_argument("--encoders_from", type=Path | None, default=None, help="take both encoders from this store")
    of.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="decoding processes; 0: none")
    of.add_argument("--batch_size", type=int, default=64, help="images encoded at once")
    of.add_argument(
        "--on_error",
        type=Literal["skip", "fail"],
        default="fail",
        help="what to do about an image that cannot be stored",
    )
    of.add_argument("--device", default="cpu", help="where to encode")


def check_numbers(args: Namespace) -> None:
    """Raise ``UserError`` for a number that is too small."""
    at_least(args, size=1, captions_per_image=1, batch_size=1, limit=1, workers=0)


def encoders(args: Namespace) -> tuple[ImageEncoder, TextEncoder]:
    """Return the encoders that the command line asks for."""
    if args.encoders_from and (args.image_encoder or args.text_encoder):
        raise UserError("--encoders_from: found --image_encoder or --text_encoder as well, expected one or the other")
    if args.encoders_from:
        image, text = encoders_of(args.encoders_from)
    else:
        image, text = args.image_encoder or PatchPCA(), args.text_encoder or HashedWords()
    where = device(args.device)
    return image.to(where), text.to(where)


def captioned(records: Iterable[Record], limit: int | None, where: object, faults: Faults) -> list[Record]:
    """Return the first records, but those without a caption.

    Args:
        records: By ascending id.
        limit: How many are looked at.
        where: Where they are from, for messages.
        faults: Takes note of those that have none.

    Raises:
        UserError: None has a caption, or one has none and no fault is to be skipped.
    """
    listed = list(islice(records, limit))
    images = [image for image in listed if image.captions]
    if not images:
        raise UserError(f"{where}: found {len(listed)} images and none with a caption")
    for image in listed:
        if not image.captions:
            faults.add("no caption", f"{where}: image {image.id} ({image.key}) has no caption")
    return images


def make_store(
    path: Path,
    images: Sequence[Record],
    settings: Mapping[str, Any],
    reading: Reading,
    recipe: Recipe,
    faults: Faults,
    workers: int = 0,
    batch_size: int = 64,
) -> None:
    """Make a store of images, or go on with it, or say that it is there.

    Args:
        path: The store.
        images: All that are asked for, by ascending id.
        settings: The kind of their source, and how they are read, as the store keeps it.
        reading: How their pixels are read.
        recipe: How they are encoded.
        faults: Takes note of those that cannot be stored.
        workers: Decoding processes; 0 decodes in this one.
        batch_size: Images encoded at once.

    Raises:
        UserError: Another store is there, an image cannot be stored and none is to be skipped, or none can be.
    """
    if finished(path, recipe.schema, made_from(settings, recipe)):
        with Store(path) as store:
            samples = ((store.meta(place), store.file_digest(place)) for place in range(len(store)))
            check_images(path, ANOTHER_OUT, samples, images, recipe, faults.skip)
        out.print(f"{path} is finished already: nothing to do", soft_wrap=True)
        return
    with Decoder(recipe.size, reading, workers) as decoder, StoreWriter(path, recipe.schema) as writer:
        job = Job(images, settings, recipe, batch_size, faults, decoder, writer)
        before = len(writer)
        job.check_partial()
        job.settle_encoders()
        job.store()
        if len(writer) == 0:
            raise UserError(f"{path}: none of {len(images)} images could be stored")
        stored = len(writer)
        writer.finish(+job.texts)
    weights = Counter(f"images of weight {image.weight}" for image in images if image.weight != 1)
    _report(path, stored, Counter({"already there": before}) + faults.counts + job.changed + job.texts + weights)
    made([path], command("inspect", path))


def _report(path: Path, stored: int, counts: Counter[str]) -> None:
    """Print the closing table; counts other than the samples are those of this run."""
    rows: list[tuple[str, object]] = [("samples", stored)]
    rows += [(name, count) for name, count in sorted(counts.items()) if count]
    rows.append(("size", f"{path.stat().st_size / 1e6:,.1f} MB"))
    summary(str(path), rows)
