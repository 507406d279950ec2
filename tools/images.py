"""Read image files into square RGB arrays, in this process or in several."""

import io
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.errors import UserError

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
        pixels: uint8 [size, size, 3].
        thumb: JPEG of the same crop, at most `THUMB_SIDE` pixels a side and never enlarged.
        converted: the kind of image it was where it was not RGB, else "".
        turned: whether EXIF asks viewers to turn it; pixels are kept as stored.
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
    """Read an image, convert it to RGB, crop its centre square and resize that to `size` pixels a side.

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
            rgb = image.convert("RGB")
            return Decoded(np.asarray(_square(rgb, size)), thumbnail(rgb), _CONVERTED.get(image.mode, ""), turned)
    except FileNotFoundError:
        return Undecoded(path, "no such file", missing=True)
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
        return Undecoded(path, str(error) or type(error).__name__, missing=False)


def thumbnail(image: Image.Image) -> bytes:
    """Small JPEG of the centre square of an RGB image."""
    buffer = io.BytesIO()
    _square(image, min(THUMB_SIDE, *image.size)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _square(image: Image.Image, size: int) -> Image.Image:
    """Centre square, resized with antialiasing."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    crop = image.crop((left, top, left + side, top + side))  # resize(box=...) would let pixels outside the box bleed in
    return crop.resize((size, size), Image.Resampling.LANCZOS)


class Decoder:
    """Decodes batches of files, a few batches ahead of their use.

    A context manager. Workers are spawned, not forked: a fork would inherit torch's threads in an unknown state.

    Args:
        size: side of the decoded images in pixels.
        workers: processes; 0 decodes in this one.
    """

    AHEAD = 3  # batches decoded or being decoded: enough to hide the parent's encoding, bounded in memory

    def __init__(self, size: int, workers: int) -> None:
        self.size = size
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, batches: Iterable[Sequence[Path]]) -> Iterator[list[Decoded | Undecoded]]:
        """Decode batch by batch, in order.

        Raises:
            UserError: a worker process was killed, mostly for want of memory.
        """
        if self._pool is None:
            yield from ([decode(path, self.size) for path in batch] for batch in batches)
            return
        waiting: deque[list[Future[Decoded | Undecoded]]] = deque()
        try:
            for batch in batches:
                waiting.append([self._pool.submit(decode, path, self.size) for path in batch])
                if len(waiting) == self.AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        except BrokenProcessPool as error:
            raise UserError("a decoding process was killed (out of memory?): try fewer --workers") from error


def _end_with_parent() -> None:
    """In a worker: exit when the parent is gone, even by SIGKILL; it would wait for work for ever otherwise."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
