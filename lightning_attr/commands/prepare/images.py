"""Read image files into square RGB arrays.

Decoding processes import this module: it needs Pillow and NumPy only, so that they start in a moment.
"""

import io
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

THUMB_SIDE = 96
"""Longest side of a thumbnail in pixels."""

_ORIENTATION = 0x0112  # EXIF tag; 1 means "as stored"
_CONVERTED = {"1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "CMYK": "CMYK"}
_CONVERTED |= {"RGBA": "transparent", "YCbCr": "YCbCr", "LAB": "LAB", "HSV": "HSV"}

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Decoded:
    """An image ready to encode.

    Args:
        pixels: Uint8 [size, size, 3].
        thumb: JPEG of the same crop, at most ``THUMB_SIDE`` pixels a side and never enlarged.
        converted: The kind of image it was where it was not RGB, else "".
        turned: Whether EXIF asks viewers to turn it; pixels are kept as stored.
    """

    pixels: Pixels
    thumb: bytes
    converted: str
    turned: bool


@dataclass(frozen=True)
class Undecoded:
    """An image that could not be read, and why."""

    path: Path
    reason: str
    missing: bool


def decode(path: Path, size: int) -> Decoded | Undecoded:
    """Read an image, put it on white where it is transparent, crop its centre square and resize that to ``size``.

    EXIF orientation is ignored, as by COCO's own annotations: their widths and heights are those of the stored pixels.
    """
    try:
        with Image.open(path) as image:
            # JPEG only: decode at a half, a quarter or an eighth where that still leaves twice the pixels needed.
            least = 2 * max(size, THUMB_SIDE)
            image.draft(None, (least, least))  # None keeps the mode
            if image.mode not in _CONVERTED and image.mode != "RGB":
                return Undecoded(path, f"mode {image.mode}, expected 8 bits a channel", missing=False)
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            rgb, was = image.convert("RGB"), _CONVERTED.get(image.mode, "")
            if image.has_transparency_data:  # what is hidden below transparent pixels is not in the picture
                white = Image.new("RGBA", image.size, "white")
                rgb, was = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), "transparent"
            return Decoded(np.asarray(_square(rgb, size)), thumbnail(rgb), was, turned)
    except FileNotFoundError:
        return Undecoded(path, "no such file", missing=True)
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
        return Undecoded(path, str(error) or type(error).__name__, missing=False)


def thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG of the centre square of an RGB image."""
    buffer = io.BytesIO()
    _square(image, min(THUMB_SIDE, *image.size)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _square(image: Image.Image, size: int) -> Image.Image:
    """Return the centre square, resized with antialiasing."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    crop = image.crop((left, top, left + side, top + side))  # resize(box=...) would let pixels outside the box bleed in
    return crop.resize((size, size), Image.Resampling.LANCZOS)


def end_with_parent() -> None:
    """Let this worker exit when its parent is gone, even by SIGKILL; it would wait for work for ever otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
