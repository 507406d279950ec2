"""Read image files into square RGB arrays.

Decoding processes import this module: it needs Pillow, NumPy and xxhash only, so that they start in a moment.
"""

import io
import multiprocessing
import os
import signal
import threading
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from xxhash import xxh3_128_hexdigest

from lightning_attr.image_files import open_image
from lightning_attr.sources.places import Damaged, Place

THUMB_SIDE = 96
"""Longest side of a thumbnail in pixels."""

_ORIENTATION = 0x0112  # EXIF tag; 1 means "as stored"
_ASIDE = (5, 6, 7, 8)  # its values that exchange width and height
_CONVERTED = {"1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "CMYK": "CMYK"}
_CONVERTED |= {"RGBA": "transparent", "YCbCr": "YCbCr", "LAB": "LAB", "HSV": "HSV"}

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Decoded:
    """An image ready to encode.

    Args:
        pixels: Uint8 [size, size, 3].
        thumb: JPEG of the same crop, at most ``THUMB_SIDE`` pixels a side and never enlarged.
        digest: Of the file.
        shape: Height and width of the whole image in pixels, as it was turned.
        notes: What is to be counted of it: that it was converted, turned, or the first of several.
    """

    pixels: Pixels
    thumb: bytes
    digest: str
    shape: tuple[int, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Undecoded:
    """An image that could not be read, and why.

    Args:
        place: Where it should be.
        reason: Why.
        digest: Of the file; empty where that could not be read either.
        kind: By which it is counted.
    """

    place: Place
    reason: str
    digest: str = ""
    kind: Literal["unreadable", "missing file", "damaged file"] = "unreadable"


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Args:
        turned: Whether they are turned as their EXIF orientation says. COCO's are not, as by its own annotations: their
            widths and heights are those of the stored pixels.
        quick: Whether thumbnails are made of the resized squares where those are large, and not of the images.
    """

    turned: bool = False
    quick: bool = False


AS_STORED = Reading()
"""How COCO's images are read."""


def decode(place: Place, size: int, reading: Reading = AS_STORED) -> Decoded | Undecoded:
    """Read an image, put it on white where it is transparent, crop its centre square and resize that to ``size``.

    Of an animation the first frame is read. Images of more than 8 bits a channel, or of more pixels than
    Pillow opens (178,956,970), are none. Colour profiles are not looked at.

    Args:
        place: Where its bytes lie.
        size: Side of the square in pixels.
        reading: How it is read.
    """
    digest = ""
    try:
        data = place.read_bytes()
        digest = xxh3_128_hexdigest(data)
        with _opened(data) as image:
            shape = image.height, image.width
            # JPEG only: decode at a half, a quarter or an eighth where that still leaves twice the pixels needed.
            least = 2 * max(size, THUMB_SIDE)
            image.draft(None, (least, least))  # None keeps the mode
            if (image.mode not in _CONVERTED and image.mode != "RGB") or _is_deep(image):
                return Undecoded(place, f"more than 8 bits a channel, or none, in mode {image.mode}", digest)
            notes = []
            if getattr(image, "is_animated", False):
                notes.append("first image of several in a file")
            orientation = image.getexif().get(_ORIENTATION, 1)
            whole: Image.Image = image
            if orientation != 1 and reading.turned:
                whole = ImageOps.exif_transpose(image)
                notes.append("turned as EXIF orientation says")
                shape = shape[::-1] if orientation in _ASIDE else shape
            elif orientation != 1:
                notes.append("kept as stored in spite of EXIF orientation")
            rgb, was = whole if whole.mode == "RGB" else whole.convert("RGB"), _CONVERTED.get(whole.mode)
            if whole.has_transparency_data:  # what is hidden below transparent pixels is not in the picture
                white = Image.new("RGBA", whole.size, "white")
                rgb, was = Image.alpha_composite(white, whole.convert("RGBA")).convert("RGB"), "transparent"
            if was is not None:
                notes.append(f"converted to RGB: {was}")
            square = _square(rgb)
            resized = _resized(square, size)
            small = resized if reading.quick and size >= 2 * THUMB_SIDE else square
            thumb = _jpeg(_resized(small, min(THUMB_SIDE, *square.size), 1.0 if reading.quick else None))
            return Decoded(np.asarray(resized), thumb, digest, shape, tuple(notes))
    except FileNotFoundError as error:
        return Undecoded(place, "no such file" if error.errno else str(error), kind="missing file")
    except Damaged as error:
        return Undecoded(place, str(error), kind="damaged file")
    except UnidentifiedImageError:
        return Undecoded(place, "no image of a known kind", digest)
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
        return Undecoded(place, getattr(error, "strerror", None) or str(error) or type(error).__name__, digest)


def _opened(data: bytes) -> Image.Image:
    """Open an image file; Pillow warns of half the pixels that it refuses, which is nothing to warn of here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return open_image(io.BytesIO(data))


def _is_deep(image: Image.Image) -> bool:
    """Return whether Pillow would cut off bits: of 16-bit colours it gives the upper eight, with wrong transparency."""
    return ";16" in str(getattr(image, "tile", ""))


def file_digest(place: Place) -> str:
    """Return the digest of an image file as :func:`decode` does; empty where it cannot be read."""
    try:
        return xxh3_128_hexdigest(place.read_bytes())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return ""


def thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG of the centre square of an RGB image."""
    return _jpeg(_resized(_square(image), min(THUMB_SIDE, *image.size)))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _square(image: Image.Image) -> Image.Image:
    """Return the centre square."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))  # resize(box=...) would let pixels outside the box bleed in


def _resized(square: Image.Image, size: int, gap: float | None = None) -> Image.Image:
    """Resize a square with antialiasing; with ``gap``, most of a large step down is taken by plain means."""
    return square.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=gap)


def end_with_parent() -> None:
    """Let this worker exit when its parent is gone, even by SIGKILL; it would wait for work for ever otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
