"""Whether a store, finished or not, was made from the images that are asked for.

Identity is content: every byte of the images, and of what is said of them what the store keeps. Where it all lies does
not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from datamodules.store.records import Meta, first_difference
from lightning_attr.commands.prepare.encode import Recipe
from lightning_attr.commands.prepare.images import Decoded, decode, file_digest
from lightning_attr.console import progress
from lightning_attr.encoders import PatchPCA
from lightning_attr.errors import UserError
from lightning_attr.sources.base import Record


def made_from(settings: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return what a store keeps of its making besides its schema.

    To be called before the encoder is fitted.

    Args:
        settings: The kind of the source, and how its images were read.
        recipe: Of which it counts whether the image encoder was fitted on the images of the store.
    """
    encoder, state = recipe.image, recipe.image.state()
    if isinstance(encoder, PatchPCA) and not encoder.fitted:
        return {**settings, "image_encoder": "fitted on its images"}
    return {**settings, "image_encoder": "as it is" if state is None else xxh3_128_hexdigest(state)}


def check_images(
    path: str | Path,
    advice: str,
    stored: Iterable[tuple[Meta, str]],
    images: Sequence[Record],
    recipe: Recipe,
    skip: bool,
) -> None:
    """Check that samples were made from images: what is said of them, and every byte of them.

    Images that were left out must still be unreadable.

    Args:
        path: Where the samples are, for messages.
        advice: What to do about a difference, likewise.
        stored: Meta of each sample, and the digest of its image file.
        images: Those that are asked for, by ascending id.
        recipe: Of the store.
        skip: Whether unreadable images may be left out.

    Raises:
        UserError: They were made from others.
    """
    digests = _compared_metas(path, advice, stored, images, recipe)
    for image in images:
        if image.id in digests:
            continue
        found = decode(image.place, recipe.size)
        if isinstance(found, Decoded):
            count = f"{len(digests)} samples"
            raise UserError(f"{path}: found {count} without image {image.id}, expected {len(images)} images; {advice}")
        if not skip:
            raise UserError(f"{found.place}: {found.reason} (see --on_error)")
    with progress("images") as bar:
        for image in bar.track((image for image in images if image.id in digests), len(digests), description="compare"):
            if file_digest(image.place) != digests[image.id]:
                what = f"found image {image.id} made from other bytes"
                raise UserError(f"{path}: {what}, expected those of {image.place}; {advice}")


def _compared_metas(
    path: str | Path, advice: str, stored: Iterable[tuple[Meta, str]], images: Sequence[Record], recipe: Recipe
) -> dict[int, str]:
    """Compare all but the files; return the digests of those by id."""
    by_id = {image.id: image for image in images}
    digests = {}
    for meta, digest in stored:
        if meta.id not in by_id:
            raise UserError(f"{path}: found image {meta.id}, expected only the {len(images)} asked for; {advice}")
        difference = first_difference(meta.to_json(), by_id[meta.id].meta(recipe.captions).to_json())
        if difference is not None:
            raise UserError(f"{path}: image {meta.id}: {difference}; {advice}")
        digests[meta.id] = digest
    return digests
