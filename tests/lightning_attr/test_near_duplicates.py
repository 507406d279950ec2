"""Near-duplicates that were planted are found, and what is not alike is not."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from lightning_attr.near_duplicates import BITS, DISTANCE, clusters, linked, near_pairs, perceptual_hash

DRAWINGS, PLANTED = 300, 60


def drawing(seed: int) -> Image.Image:
    """A few shapes of one colour each on a plain ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (64, 64), tuple(int(value) for value in rng.integers(150, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 6)):
        x, y, size = (int(value) for value in (*rng.integers(0, 50, 2), rng.integers(8, 30)))
        colour, box = tuple(int(value) for value in rng.integers(0, 256, 3)), (x, y, x + size, y + size)
        draw = (pen.ellipse, pen.rectangle)[rng.integers(2)]
        draw(box, fill=colour)
    return again(image, 92)


def again(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def cropped(image: Image.Image, pixels: int = 1) -> Image.Image:
    box = (pixels, pixels, image.width - pixels, image.height - pixels)
    return image.crop(box).resize(image.size, Image.Resampling.BILINEAR)


def altered(image: Image.Image, how: int) -> Image.Image:
    if how == 0:
        return cropped(image)
    if how == 1:
        return again(image, 40)
    if how == 2:
        return again(ImageEnhance.Brightness(image).enhance(0.8), 92)
    return again(ImageEnhance.Brightness(cropped(image)).enhance(1.1), 60)


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    return [drawing(seed) for seed in range(DRAWINGS)]


def test_planted_ones_are_found_and_others_are_not(drawings: list[Image.Image]) -> None:
    planted = [altered(drawings[place], place % 4) for place in range(PLANTED)]
    ids = [10 * place for place in range(DRAWINGS + PLANTED)]
    found = clusters([*drawings, *planted], ids)
    pairs = {pair for cluster in found for pair in combinations(cluster, 2)}
    expected = {(10 * place, 10 * (DRAWINGS + place)) for place in range(PLANTED)}
    assert len(pairs & expected) / len(expected) >= 0.95  # recall
    assert len(pairs & expected) / len(pairs) >= 0.97  # precision


def test_distances_are_those_of_the_bits(drawings: list[Image.Image]) -> None:
    hashes = np.stack([perceptual_hash(each) for each in drawings[:40]])
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    assert bits.sum(1).max() <= BITS
    for distance in (DISTANCE, 60, 80):
        expected = {
            (one, other) for one, other in combinations(range(40), 2) if (bits[one] != bits[other]).sum() <= distance
        }
        assert set(near_pairs(hashes, distance)) == expected
    assert set(near_pairs(hashes, 80))


def test_brightness_alone_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    pixels = 2 * rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
    assert clusters([Image.fromarray(pixels), Image.fromarray(pixels // 2)], [3, 4], distance=0) == [(3, 4)]


def test_the_same_in_another_colour_is_not_alike() -> None:
    figures = []
    for colour in ("yellow", "blue", "blue"):
        figures.append(Image.new("RGB", (64, 64), "black"))
        ImageDraw.Draw(figures[-1]).ellipse((20, 10, 50, 40), fill=colour)
    assert clusters(figures, [0, 1, 2], BITS) == [(1, 2)]
    plain = [Image.new("RGB", (9, 7), colour) for colour in ("white", "red", "grey", "black")]
    assert clusters(plain, [0, 1, 2, 3]) == [(0, 2)]  # black has no colour, and no brightness to measure it by


def test_no_images_have_no_clusters() -> None:
    assert clusters([], []) == []


def test_single_linkage() -> None:
    assert linked([(4, 5), (0, 2), (2, 7), (5, 9), (1, 9), (7, 0)]) == [[0, 2, 7], [1, 4, 5, 9]]
    assert linked([]) == []
