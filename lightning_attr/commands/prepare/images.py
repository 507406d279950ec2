"""Read image files into square RGB arrays.

Decoding processes import this module: it needs Pillow, NumPy and xxhash only, so that they start in a moment.
"""

import io
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image, UnidentifiedImageError
from xxhash import xxh3_128_hexdigest

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
        digest: Of the file.
        notes: What is to be counted of it: that it was converted, turned, or the first of several.
    """

    pixels: Pixels
    thumb: bytes
    digest: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Undecoded:
    """An image that could not be read, and why; ``digest`` is empty where there is no such file."""

    path: Path
    reason: str
    digest: str = ""


def decode(path: Path, size: int) -> Decoded | Undecoded:
    """Read an image, put it on white where it is transparent, crop its centre square and resize that to ``size``.

    EXIF orientation is ignored, as by COCO's own annotations: their widths and heights are those of the stored pixels.
    Of an animation the first frame is read. Images of more than 8 bits a channel are none.
    """
    digest = ""
    try:
        data = path.read_bytes()
        digest = xxh3_128_hexdigest(data)
        with Image.open(io.BytesIO(data)) as image:
            # JPEG only: decode at a half, a quarter or an eighth where that still leaves twice the pixels needed.
            least = 2 * max(size, THUMB_SIDE)
            image.draft(None, (least, least))  # None keeps the mode
            if (image.mode not in _CONVERTED and image.mode != "RGB") or _is_deep(image):
                return Undecoded(path, f"more than 8 bits a channel, or none, in mode {image.mode}", digest)
            notes = []
            if getattr(image, "is_animated", False):
                notes.append("first image of several in a file")
            if image.getexif().get(_ORIENTATION, 1) != 1:
                notes.append("kept as stored in spite of EXIF orientation")
            rgb, was = image.convert("RGB"), _CONVERTED.get(image.mode)
            if image.has_transparency_data:  # what is hidden below transparent pixels is not in the picture
                white = Image.new("RGBA", image.size, "white")
                rgb, was = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), "transparent"
            if was is not None:
                notes.append(f"converted to RGB: {was}")
            return Decoded(np.asarray(_square(rgb, size)), thumbnail(rgb), digest, tuple(notes))
    except FileNotFoundError:
        return Undecoded(path, "no such file")
    except UnidentifiedImageError:
        return Undecoded(path, "no image of a known kind", digest)
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
        return Undecoded(path, getattr(error, "strerror", None) or str(error) or type(error).__name__, digest)


def _is_deep(image: Image.Image) -> bool:
    """Return whether Pillow would cut off bits: of 16-bit colours it gives the upper eight, with wrong transparency."""
    return ";16" in str(getattr(image, "tile", ""))


def file_digest(path: Path) -> str:
    """Return the digest of an image file as :func:`decode` does; empty where it cannot be read."""
    try:
        return xxh3_128_hexdigest(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return ""


def locate(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, though the accents in its name be composed in another way on the disk."""
    if os.path.exists(folder / name):
        return folder / name
    for part in Path(name).parts:
        folder /= part if os.path.exists(folder / part) else _composed(folder).get(normalize("NFC", part), part)
    return folder


@lru_cache(maxsize=1024)
def _composed(folder: Path) -> dict[str, str]:
    """Return the names in a folder by their composed form."""
    return {normalize("NFC", name): name for name in os.listdir(folder)} if folder.is_dir() else {}


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
