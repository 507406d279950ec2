"""Random choices that are pure functions of a seed and of ids, whatever the batch size, order, workers or ranks.

Shapes: B ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

Hashes = NDArray[np.uint64]


def hashes(ids: NDArray[np.int64], *key: int | str) -> Hashes:
    """Return a well-mixed hash of each id under a key [B]: splitmix64 of the id, offset by the key's own hash."""
    offset = np.uint64(xxh3_64_intdigest(repr(key).encode()))
    return _splitmix(_splitmix(ids.astype(np.uint64)) ^ offset)


def choices(ids: NDArray[np.int64], counts: NDArray[np.int64] | int, *key: int | str) -> NDArray[np.int64]:
    """Choose one of ``counts`` for each id [B], uniformly; 0 where the count is 0."""
    return (hashes(ids, *key) % np.maximum(counts, 1).astype(np.uint64)).astype(np.int64)


def shuffled(ids: NDArray[np.int64], *key: int | str) -> NDArray[np.int64]:
    """Return an order [B] that puts the ids in a random order; any subset of them comes in that same order."""
    return np.argsort(hashes(ids, *key), kind="stable")


def showing_ids(ids: NDArray[np.int64], nth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what stands for the ``nth`` showing of each id in an epoch [B], where random numbers are keyed by ids.

    The first time it is the id itself, so that samples that are shown once are seen as if there were no others.
    """
    others = (_splitmix(_splitmix(nth.astype(np.uint64)) ^ ids.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)
    return np.where(nth > 0, others, ids)


def _splitmix(values: Hashes) -> Hashes:
    """Apply the finaliser of splitmix64 (Steele, Lea, Flood 2014); arithmetic wraps."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
