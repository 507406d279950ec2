"""Timing one thing against another on a machine that is never quite quiet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

Timed = Callable[[], float]
"""Does a piece of work and returns the seconds that count."""


@dataclass(frozen=True)
class Spread:
    """Median of some measurements, and the quartiles between which the middle half of them lies."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        lower, middle, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(middle, lower, upper)


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        name: Its key in the JSON file.
        value: What was measured; None if that was not possible here.
        limit: What limits it, or why there is no value.
        aim: The median should be at least this.
        at_most: It should be at most that instead.
        kept: Whether it goes into the JSON file.
    """

    name: str
    value: Spread | None
    limit: str
    aim: float | None = None
    at_most: bool = False
    kept: bool = True


@dataclass(frozen=True)
class Sizes:
    """How much of everything is measured.

    Args:
        latents: Records without text states that are read.
        texts: Records with them.
        records: Records that are read by the peers as well.
        trained: Samples of the training store.
        epochs: Epochs that are timed.
        swept: Samples of the store that is swept.
        images: Images that are prepared.
        retrained: Models that are retrained.
        steps: Steps of each of them; None is as many as in the demo.
        repeats: Pairs of measurements in a ratio.
        scored: Samples that all queries are scored for in one pass.
        compared: Samples that a peer scores as well.
        featured: Samples whose features are taken.
        timesteps: Draws of a sample's gradient.
        grown: Samples of the smaller of two stores.
        method_repeats: Pairs of measurements that take a minute each.
    """

    latents: int = 16384
    texts: int = 256
    records: int = 4096
    trained: int = 384
    epochs: int = 2
    swept: int = 256
    images: int = 512
    retrained: int = 8
    steps: int | None = None
    repeats: int = 7
    scored: int = 768
    compared: int = 256
    featured: int = 32
    timesteps: int = 4
    grown: int = 1024
    method_repeats: int = 3


def seconds(work: Callable[[], object]) -> Timed:
    """Return the timing of ``work``, all of which counts."""

    def timed() -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    return timed


def ratio(a: Timed, b: Timed, repeats: int) -> Spread:
    """Return how many times as fast as ``b`` is ``a``: b's seconds over a's.

    They alternate, after one round that does not count. A slow moment of the machine then falls on neighbours that are
    divided by each other, or on one of the pairs, which the median passes over.
    """
    a(), b()
    quotients = []
    for _ in range(repeats):
        taken = a()
        quotients.append(b() / taken)
    return Spread.of(quotients)
