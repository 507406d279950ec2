import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_attr.commands.report.pictures import Credit, Picture


def decoded(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.address.partition("base64,")[2])))


def test_pixels_survive() -> None:
    pixels = torch.arange(4 * 6 * 3, dtype=torch.uint8).reshape(4, 6, 3)
    picture = Picture.of_pixels(pixels)
    assert picture.address.startswith("data:image/png;")
    assert (picture.width, picture.height) == (6, 4)
    assert np.array_equal(np.asarray(decoded(picture)), pixels.numpy())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_image_files_are_kept_as_they_are(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(buffer, kind)
    picture = Picture.of_file(buffer.getvalue())
    assert picture is not None
    assert picture.address == f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    assert (picture.width, picture.height) == (5, 3)


@pytest.mark.parametrize("data", [b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"])
def test_other_bytes_are_no_picture(data: bytes) -> None:
    assert Picture.of_file(data) is None


BY_SA = "http://creativecommons.org/licenses/by-sa/2.0/"


@pytest.mark.parametrize(
    ("text", "words", "address"),
    [
        (f"Attribution-ShareAlike License ({BY_SA})", "CC BY-SA 2.0", BY_SA),
        (BY_SA, "CC BY-SA 2.0", BY_SA),
        (
            "No known copyright (http://flickr.com/commons/usage/)",
            "No known copyright",
            "http://flickr.com/commons/usage/",
        ),
        ("https://example.org/terms", "https://example.org/terms", "https://example.org/terms"),
        ("CC0-1.0", "CC0-1.0", None),
    ],
)
def test_licences_are_named_in_short(text: str, words: str, address: str | None) -> None:
    assert Credit.licence(text) == Credit(words, address)


def test_only_web_addresses_become_links() -> None:
    assert Credit.source("https://example.org/a.jpg") == Credit("source", "https://example.org/a.jpg")
    assert Credit.source("javascript:alert(1)") == Credit("javascript:alert(1)", None)
    assert Credit.source("generated: shapes, seed 0").address is None
