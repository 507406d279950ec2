"""What an image file looks like to a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_attr.commands.prepare.images import Decoded, decode


def hidden(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """A red image whose right half is transparent, and hides blue; and how it is saved."""
    if mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
        image.paste((0, 0, 255, 0), (32, 0, 64, 64))
        return image.convert(mode), {}
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 64))
    if mode == "P":
        image = image.quantize(2)
        return image, {"transparency": image.getpixel((40, 0))}
    return image.convert(mode), {"transparency": (0, 0, 255) if mode == "RGB" else image.convert("L").getpixel((40, 0))}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_are_white_whatever_they_hide(tmp_path: Path, mode: str) -> None:
    """An alpha channel, an entry of a palette, or a colour that a tRNS chunk names."""
    image, options = hidden(mode)
    image.save(tmp_path / "x.png", **options)
    found = decode(tmp_path / "x.png", 64)
    assert isinstance(found, Decoded)
    assert found.converted == "transparent"
    assert (found.pixels[:, 34:] == 255).all()
    expected = np.asarray(image.convert("RGB"))[:, :30]
    np.testing.assert_array_equal(found.pixels[:, :30], expected)


def test_an_opaque_image_is_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 64)
    assert isinstance(found, Decoded)
    assert found.converted == ""
    np.testing.assert_array_equal(found.pixels, pixels)
