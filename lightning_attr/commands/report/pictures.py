"""Images inside the page, and the credit that is due to them.

Shapes: H x W pixels.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from lightning_attr.errors import shortened
from lightning_attr.image_files import open_image

_MOST_WORDS = 200
_ADDRESS = re.compile(r"https?://[^\s()<>]+")
_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/licenses/([a-z-]+)/([\d.]+)")


@dataclass(frozen=True)
class Picture:
    """An image as a ``data:`` address, and its size in pixels."""

    address: str
    width: int
    height: int

    @classmethod
    def of_file(cls, data: bytes) -> Picture | None:
        """Take an image file as it is; None where it is empty or no image."""
        try:
            with open_image(io.BytesIO(data)) as image:
                return cls(_address(image.get_format_mimetype() or "", data), *image.size)
        except Exception:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
            return None

    @classmethod
    def of_pixels(cls, pixels: Tensor) -> Picture:
        """Encode uint8 [H, W, 3] as PNG."""
        buffer = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(buffer, "PNG", optimize=True)
        return cls(_address("image/png", buffer.getvalue()), pixels.shape[1], pixels.shape[0])


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Credit:
    """A licence or a source: words, and the address that they lead to."""

    words: str
    address: str | None

    @classmethod
    def licence(cls, text: str) -> Credit:
        """Name the licence in short: of Creative Commons' address "CC BY-SA 2.0", else the text without its address."""
        address = _ADDRESS.search(text)
        if found := _CREATIVE_COMMONS.search(text):
            return cls(f"CC {found[1].upper()} {found[2]}", address and address[0])
        words = _ADDRESS.sub("", text).replace("()", "").strip() or text
        return cls(shortened(words, _MOST_WORDS), address and address[0])

    @classmethod
    def source(cls, text: str) -> Credit:
        """Call an address "source"; other texts stay as they are."""
        address = _ADDRESS.fullmatch(text)
        return cls("source", text) if address else cls(shortened(text, _MOST_WORDS), None)
