"""The encoders that a store was made with.

Shapes: B samples, H x W pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike
from PIL import Image

from datamodules.store import Store
from lightning_attr.artifacts.provenance import differs
from lightning_attr.encoders.base import ImageEncoder, TextEncoder
from lightning_attr.encoders.registry import image_encoder, text_encoder
from lightning_attr.errors import StoreError, UserError
from lightning_attr.image_files import open_image

#: The encoders whose fitted state a store may carry.
ENCODER_STATES = ("image", "text")


def encoders_digest(store: Store) -> str | None:
    """Return the digest of the encoders that a store was made with, wherever their weights lie; None if it has none.

    Latents and conditions of two stores mean the same where it is the same.
    """
    if not store.schema.encoders:
        return None
    digest = xxhash.xxh3_128()
    for name, config in sorted(store.schema.encoders.items()):
        known = {key: value for key, value in config.items() if key not in ("source", "pipeline", "adapter")}
        digest.update(f"{name} {json.dumps(known if 'weights' in config else config, sort_keys=True)};".encode())
        digest.update(store.encoder_state(name) or b"")
    return digest.hexdigest()


def check_encoders(store: Store, digest: str | None, path: str) -> None:
    """Check that a store was made with the same encoders as something else, as far as both are known.

    Args:
        store: The store.
        digest: Of the encoders of the other.
        path: Where that lies.

    Raises:
        UserError: It was made with others.
    """
    if differs(found := encoders_digest(store), digest):
        raise UserError(
            f"{store.path}: found encoders of digest {found}, expected {digest} as {path} has them: the same numbers "
            "would mean other images or texts; prepare it with --encoders_from of the other store"
        )


def store_image_encoder(store: Store) -> ImageEncoder:
    """Return the image encoder of ``store``.

    Raises:
        UserError: It is not one of ours, or it cannot be loaded.
    """
    with _named(store):
        encoder = image_encoder(_config(store, "image"), store.encoder_state("image"))
        latent = store.schema.fields.get("latent")
        if latent is not None and len(latent.shape) == 4 and latent.shape[1] != encoder.channels:
            raise UserError(f"image encoder: found {encoder.channels} channels, expected {latent.shape[1]} as stored")
        return encoder


def store_text_encoder(store: Store) -> TextEncoder:
    """Return the text encoder of ``store``.

    Raises:
        UserError: It is not one of ours, or it cannot be loaded.
    """
    with _named(store):
        encoder = text_encoder(_config(store, "text"), store.encoder_state("text"))
        for name, shape in encoder.conditions.items():
            field = store.schema.fields.get(name)
            if field is not None and field.shape[1:] != shape:
                raise UserError(f"text encoder: found {name} of shape {shape}, expected {field.shape[1:]} as stored")
        return encoder


@contextmanager
def _named(store: Store) -> Iterator[None]:
    """Say in which store an encoder is wrong."""
    try:
        yield
    except StoreError:
        raise
    except UserError as error:
        raise UserError(f"{store.path}: {error}") from error


def _config(store: Store, name: str) -> Mapping[str, Any]:
    if name not in store.schema.encoders:
        raise UserError(f"found no {name} encoder, expected the one that it was made with")
    return store.schema.encoders[name]  # type: ignore[no-any-return]


def jpeg(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """Return an image [H, W, 3] as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def thumb_images(store: Store, ids: ArrayLike) -> list[Image.Image]:
    """Return the thumbnails of samples [B] as RGB images, in the order asked.

    Raises:
        UserError: The store has no such sample, or no picture of it.
    """
    return [_thumb_image(store, int(position)) for position in store.positions(ids)]


def _thumb_image(store: Store, position: int) -> Image.Image:
    image = read_image(store.thumb(position))
    if image is None:
        raise UserError(f"{store.path}: found no picture in the thumb of sample {store.ids[position]}, expected a JPEG")
    return image


def read_image(data: bytes) -> Image.Image | None:
    """Return an image file as an RGB image; None where it is empty, damaged or none."""
    try:
        return open_image(io.BytesIO(data)).convert("RGB")
    except Exception:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
        return None
