"""The encoders that a store was made with.

Shapes: B samples, H x W pixels.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, UnidentifiedImageError

from datamodules.store import Store
from lightning_attr.encoders.base import ImageEncoder, TextEncoder
from lightning_attr.encoders.registry import image_encoder, text_encoder
from lightning_attr.errors import UserError

#: The encoders whose fitted state a store may carry.
ENCODER_STATES = ("image", "text")


def store_image_encoder(store: Store) -> ImageEncoder:
    """Return the image encoder of ``store``.

    Raises:
        UserError: It is not one of ours, or it cannot be loaded.
    """
    return image_encoder(store.schema.encoders["image"], store.encoder_state("image"))


def store_text_encoder(store: Store) -> TextEncoder:
    """Return the text encoder of ``store``.

    Raises:
        UserError: It is not one of ours, or it cannot be loaded.
    """
    return text_encoder(store.schema.encoders["text"], store.encoder_state("text"))


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
    try:
        return Image.open(io.BytesIO(store.thumb(position))).convert("RGB")
    except UnidentifiedImageError as error:
        raise UserError(
            f"{store.path}: found no picture in the thumb of sample {store.ids[position]}, expected a JPEG"
        ) from error
