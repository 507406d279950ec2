"""Images of all forms, and files that are none."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def _png(mode: str, size: tuple[int, int] = (40, 36), **settings: Any) -> Callable[[], bytes]:
    def draw() -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG", **settings)
        return buffer.getvalue()

    return draw


def _as(form: str, mode: str = "RGB", **settings: Any) -> Callable[[], bytes]:
    def draw() -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, (40, 36)).save(buffer, form, **settings)
        return buffer.getvalue()

    return draw


#: Images in place of the first one.
IMAGES: Mapping[str, Callable[[], bytes]] = {
    **{f"mode {mode}": _png(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    **{f"form {form}": _as(form) for form in ("JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO")},
    "CMYK": _as("JPEG", "CMYK"),
    "a palette with transparency": _png("P", transparency=0),
    "one pixel": _png("RGB", (1, 1)),
    "a line": _png("RGB", (2000, 1)),
    "a bomb": _png("1", (20_000, 10_000)),
    "half": lambda: _png("RGB")()[:60],
    "half a JPEG": lambda: _as("JPEG")()[:400],
    "nothing": lambda: b"",
    "text": lambda: b"no image",
    "zeros": lambda: bytes(1000),
    "longer": lambda: _png("RGB")() + bytes(100),
    "vector": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}

#: Of the images, those that are none.
BROKEN = ("half", "half a JPEG", "nothing", "text", "zeros", "vector")


def put(draw: Callable[[], bytes], path: str = "coco/images/0001.png") -> None:
    """Put an image in the place of another one."""
    Path(path).write_bytes(draw())
