"""Near-duplicates: images that are alike but for a slight crop, another compression or another brightness.

Shapes: N images, S x S pixels, K x K of their lowest frequencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

SIDE, LOW = 32, 8
"""Pixels a side of what is hashed, and how many frequencies of each direction are looked at."""

BITS = 3 * (LOW * LOW - 1)
"""Of a hash: the frequencies of three colours without their means."""

DISTANCE = 32
"""Bits in which near-duplicates differ at most, of ``BITS``; docs/groups.md says how it was chosen."""


FIELDS, TOLERANCE = 4, 0.12
"""Fields a side whose colours are compared, and by how much those of near-duplicates differ at most (root mean square).
"""


def perceptual_hash(image: Image.Image) -> Hashes:
    """Return a hash of an RGB image, uint64 [3]: which low frequencies of a colour are above their median.

    Brightness scales all frequencies alike, compression changes the high ones, a slight crop moves the low ones little.
    The mean of a colour is left out, so that images of a single colour are all alike.
    """
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64).transpose(2, 0, 1)
    frequencies = (COSINES @ pixels @ COSINES.T).reshape(3, -1)[:, 1:].round(6)
    above = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(np.pad(above, ((0, 0), (0, 1))).ravel()).view(np.uint64)


#: The cosine transform (DCT-II) of S numbers to their K lowest frequencies, [K, S].
COSINES = np.cos(np.pi * np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1) / (2 * SIDE))


def near_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[int, int]]:
    """Yield the places of all pairs of hashes that differ in at most so many bits, the smaller place first."""
    for place, each in enumerate(hashes):
        bits = np.bitwise_count(hashes[place + 1 :] ^ each).sum(axis=1, dtype=np.int64)
        yield from ((place, place + 1 + int(other)) for other in np.flatnonzero(bits <= distance))


def linked(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return what pairs link together, be it through others (single linkage), each ascending, by the first of each."""
    leader: dict[int, int] = {}

    def first(place: int) -> int:
        while (above := leader.setdefault(place, place)) != place:
            leader[place] = leader[above]
            place = above
        return place

    for one, other in pairs:
        low, high = sorted((first(one), first(other)))
        leader[high] = low
    found: dict[int, list[int]] = {}
    for place in sorted(leader):
        found.setdefault(first(place), []).append(place)
    return list(found.values())


def colours(image: Image.Image) -> Floats:
    """Return the colours of an RGB image in 4 x 4 fields, in parts of its mean brightness, [48]."""
    fields = np.asarray(image.resize((FIELDS, FIELDS), Image.Resampling.BOX), np.float64).ravel()
    return np.divide(fields, max(float(fields.mean()), 1.0))


def clusters(images: Iterable[Image.Image], ids: Sequence[int], distance: int = DISTANCE) -> list[tuple[int, ...]]:
    """Return the ids of near-duplicates, cluster by cluster; images that are like no other are in none.

    Two are linked whose hashes are near and whose colours are: a red drawing and the same in blue have one structure.

    Args:
        images: RGB images, [N].
        ids: Theirs, ascending.
        distance: Bits in which the hashes of two that are linked differ at most.
    """
    looked_at = [(perceptual_hash(image), colours(image)) for image in images]
    pairs = near_pairs(np.array([each for each, _ in looked_at], np.uint64).reshape(-1, 3), distance)
    alike = (
        (one, other)
        for one, other in pairs
        if np.square(looked_at[one][1] - looked_at[other][1]).mean() <= TOLERANCE**2
    )
    return [tuple(ids[place] for place in places) for places in linked(alike)]
