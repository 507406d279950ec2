"""What an image file looks like to a model."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_attr.commands.prepare.images import Decoded, Undecoded, decode, file_digest


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
    assert found.notes == ("converted to RGB: transparent",)
    assert (found.pixels[:, 34:] == 255).all()
    expected = np.asarray(image.convert("RGB"))[:, :30]
    np.testing.assert_array_equal(found.pixels[:, :30], expected)


def png(depth: int, colour: int, pixel: bytes, transparent: bytes = b"") -> bytes:
    """Four by four equal pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, depth, colour, 0, 0, 0))
    hidden = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + 4 * pixel) * 4))
    return b"\x89PNG\r\n\x1a\n" + head + hidden + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        png(16, 0, b"\x9c\x40"),
        png(16, 0, b"\x9c\x40", b"\x9c\x40"),
        png(16, 2, b"\xff\xff\x01\x00\x00\x01"),
        png(16, 2, b"\xff\xff\x01\x00\x00\x01", b"\xff\xff\x01\x00\x00\x01"),
        png(16, 4, b"\x9c\x40\x00\x00"),
        png(16, 6, b"\xff\xff\x00\x01\x00\x01\x00\x00"),
    ],
)
def test_images_of_16_bits_are_none(tmp_path: Path, data: bytes) -> None:
    """Their transparent colour has 16 bits, which those that Pillow gives never equal."""
    (tmp_path / "x.png").write_bytes(data)
    found = decode(tmp_path / "x.png", 4)
    assert isinstance(found, Undecoded)
    assert found.reason.startswith("more than 8 bits a channel")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_image_is_taken(tmp_path: Path, kind: str) -> None:
    first, *rest = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    first.save(tmp_path / "x", kind, save_all=True, append_images=rest)
    found = decode(tmp_path / "x", 8)
    assert isinstance(found, Decoded)
    assert np.abs(found.pixels.astype(int) - (255, 0, 0)).max() < 8
    assert "first image of several in a file" in found.notes


def test_a_transparent_palette_with_alpha(tmp_path: Path) -> None:
    image = hidden("RGBA")[0].convert("PA")
    image.save(tmp_path / "x.tif")
    found = decode(tmp_path / "x.tif", 64)
    assert isinstance(found, Decoded)
    assert found.notes == ("converted to RGB: transparent",)
    assert (found.pixels[:, 34:] == 255).all()


def test_half_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 51)).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 8)
    assert isinstance(found, Decoded)
    np.testing.assert_array_equal(found.pixels, np.broadcast_to([255, 204, 204], (8, 8, 3)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no image of a known kind"),
        (b"GIF89a", "no image of a known kind"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, ""),
        (png(8, 2, b"abc")[:-30], ""),
        (png(8, 2, b"abc").replace(struct.pack(">II", 4, 4), struct.pack(">II", 60_000, 60_000)), ""),
    ],
)
def test_what_is_no_image_has_a_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    """Nothing, no more than a head, cut short, and more pixels than memory."""
    (tmp_path / "x").write_bytes(data)
    found = decode(tmp_path / "x", 8)
    assert isinstance(found, Undecoded)
    assert found.reason.startswith(reason)
    assert found.reason
    assert "0x" not in found.reason
    assert (found.digest, decode(tmp_path, 8).digest) == (file_digest(tmp_path / "x"), "")


def test_no_file_runs_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program, whatever a file is called: Pillow would have Ghostscript run it."""
    said = tmp_path / "it ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{said}'\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    found = decode(tmp_path / "x.png", 8)
    assert isinstance(found, Undecoded)
    assert found.digest
    assert not said.exists()


def test_a_single_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 8)
    assert isinstance(found, Decoded)
    assert (found.pixels == (255, 0, 0)).all()


def test_an_opaque_image_is_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 64)
    assert isinstance(found, Decoded)
    assert found.notes == ()
    np.testing.assert_array_equal(found.pixels, pixels)
