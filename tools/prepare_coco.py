"""Make a store of images with captions in COCO's format.

    python -m tools.prepare_coco --images DIR --captions FILE --out STORE

Images go in by ascending id. A run that was killed goes on when the same command is given again, and the store is then
the same as that of an uninterrupted run, bit for bit.
"""

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch

from datamodules.errors import UserError
from datamodules.records import Meta, Sample
from datamodules.writer import StoreWriter
from lightning_attr.encoders import PatchPCA, parse_image_encoder, parse_text_encoder
from tools.coco import CocoImage, read_captions
from tools.console import out, progress, run, summary, warn
from tools.encode import Recipe, device, encoders_of, finished
from tools.images import Decoded, Decoder, Undecoded

FIT_IMAGES = 2_000  # a 48 x 48 covariance is known to three digits after far fewer
NAMED = 20  # images left out for one reason that are named; the rest is only counted


@dataclass
class Job:
    """One run of the command: what it reads, how it encodes, where it writes, and what it counts."""

    folder: Path
    images: Sequence[CocoImage]
    recipe: Recipe
    batch_size: int
    skip: bool
    decoder: Decoder
    writer: StoreWriter
    counts: Counter[str]

    def check_partial(self) -> None:
        """Refuse to go on with a killed run of other images.

        Raises:
            UserError: the partial store cannot come from these images.
        """
        last = self.writer.last_id
        if last is None:
            return
        ids = [image.id for image in self.images if image.id <= last]
        if last not in ids[-1:] or len(self.writer) > len(ids):
            raise UserError(
                f"{self.writer.path}: a killed run left {len(self.writer)} samples up to id {last}, expected them "
                "among the images asked for; give the same arguments again or delete what it left"
            )

    def settle_encoders(self) -> None:
        """Fit the image encoder where it needs that, or take its state from the run that this one goes on with.

        Raises:
            UserError: that run had other encoders.
        """
        encoder, saved = self.recipe.image, self.writer.encoder_state("image")
        if isinstance(encoder, PatchPCA) and not encoder.fitted:
            if saved is None:
                encoder.fit(self._fit_batches())
            else:
                encoder.load_state(saved)
        state = encoder.state()
        if saved is not None and saved != state:
            raise UserError(f"{self.writer.path}: a killed run left another fitted encoder, expected the same")
        if state is not None:
            self.writer.put_encoder_state("image", state)

    def store(self) -> None:
        """Decode, encode and write what the store does not hold yet."""
        last = self.writer.last_id
        # The cuts are the same whatever is there already: the last bits of an encoding may depend on its batch.
        batches = [batch for batch in self._batches(self.images) if last is None or batch[-1].id > last]
        with progress("images") as bar:
            task = bar.add_task("encode", total=sum(map(len, batches)))
            for batch, items in zip(batches, self._decoded(batches), strict=True):
                pairs = [(image, item) for image, item in zip(batch, items, strict=True) if self._accepts(item)]
                for sample in self._samples(pairs):
                    if last is None or sample.meta.id > last:
                        self.writer.write(sample)
                self._count(item for image, item in zip(batch, items, strict=True) if last is None or image.id > last)
                bar.advance(task, len(batch))

    def _fit_batches(self) -> Iterator[torch.Tensor]:
        """Images evenly spread over all of them, in batches [B, H, W, 3]."""
        spread = self.images[:: math.ceil(len(self.images) / FIT_IMAGES)]
        with progress("images") as bar:
            task = bar.add_task("fit encoder", total=len(spread))
            for items in self._decoded(self._batches(spread)):
                pixels = [item.pixels for item in items if self._accepts(item)]
                if pixels:
                    yield torch.from_numpy(np.stack(pixels))
                bar.advance(task, len(items))

    def _batches(self, images: Sequence[CocoImage]) -> list[Sequence[CocoImage]]:
        return [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]

    def _decoded(self, batches: Iterable[Sequence[CocoImage]]) -> Iterator[list[Decoded | Undecoded]]:
        return self.decoder.batches([self.folder / image.file_name for image in batch] for batch in batches)

    def _accepts(self, item: Decoded | Undecoded) -> TypeGuard[Decoded]:
        """Whether an image was decoded; where not, it is left out, or the run fails."""
        if isinstance(item, Undecoded) and not self.skip:
            raise UserError(f"{item.path}: {item.reason} (see --on-error)")
        return isinstance(item, Decoded)

    def _count(self, items: Iterable[Decoded | Undecoded]) -> None:
        """Count what was left out and what was changed."""
        for item in items:
            if isinstance(item, Undecoded):
                kind = "skipped: missing file" if item.missing else "skipped: unreadable"
                self.counts[kind] += 1
                if self.counts[kind] <= NAMED:
                    warn(f"skipped {item.path}: {item.reason}")
                continue
            if item.converted:
                self.counts[f"converted to RGB: {item.converted}"] += 1
            self.counts["kept as stored in spite of EXIF orientation"] += item.turned

    def _samples(self, pairs: Sequence[tuple[CocoImage, Decoded]]) -> Iterator[Sample]:
        """Encode a batch."""
        if not pairs:
            return
        captions = [image.captions[: self.recipe.captions] for image, _ in pairs]
        arrays = self.recipe.arrays(np.stack([item.pixels for _, item in pairs]), captions)
        for (image, item), texts, fields in zip(pairs, captions, arrays, strict=True):
            meta = Meta(image.id, texts, image.licence, image.source, {"file_name": image.file_name})
            yield Sample(meta, fields, item.thumb)


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
        prog="python -m tools.prepare_coco", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    listed = read_captions(args.captions)[: args.limit]
    images = [image for image in listed if image.captions]
    if not images:
        raise UserError(f"{args.captions}: found {len(listed)} images and none with a caption")
    if args.on_error == "fail" and len(images) < len(listed):
        bare = next(image for image in listed if not image.captions)
        raise UserError(f"{args.captions}: image {bare.id} ({bare.file_name}) has no caption (see --on-error)")
    return images, Counter({"skipped: no caption": len(listed) - len(images)})


def _report(path: Path, stored: int, counts: Counter[str]) -> None:
    """Closing table; counts other than the samples are those of this run."""
    rows: list[tuple[str, object]] = [("samples", stored)]
    rows += [(name, count) for name, count in sorted(counts.items()) if count]
    rows.append(("size", f"{path.stat().st_size / 1e6:,.1f} MB"))
    summary(str(path), rows)


if __name__ == "__main__":
    run(main)
