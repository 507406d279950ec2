"""The numbers behind the figures: positions in per cent of a figure's width, and how values are written.

Shapes: N scores, K of them marked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 60


@dataclass(frozen=True)
class Scale:
    """A power of ten that a set of values is written in, so that they are short and can be compared.

    Args:
        exponent: A multiple of 3.
        decimals: Digits after the point.
    """

    exponent: int
    decimals: int

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """Choose the scale in which the largest value lies between 0.1 and 100."""
        finite = values[values.isfinite()].abs()
        largest = float(finite.max()) if len(finite) else 0.0
        if largest == 0:
            return cls(0, 3)
        exponent = 3 * math.floor((math.log10(largest) + 1) / 3)
        return cls(exponent, 2 if largest >= 10 * 10.0**exponent else 3)

    @property
    def unit(self) -> str:
        """Return the factor to print beside a heading, such as "× 10⁻³"; empty for 1."""
        digits = str(self.exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"× 10{digits}" if self.exponent else ""

    def signed(self, value: float) -> str:
        """Write a value with its sign."""
        return self._write(value, "+")

    def plain(self, value: float) -> str:
        """Write a value without a plus sign."""
        return self._write(value, "")

    def _write(self, value: float, sign: str) -> str:
        if not math.isfinite(value):
            return "unknown"
        return f"{value / 10.0**self.exponent:{sign}.{self.decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: per cent of the figure's width and height, and the number of samples."""

    left: float
    width: float
    height: float
    count: int


@dataclass(frozen=True)
class Histogram:
    """The distribution of the scores of one query.

    Args:
        bars: Those with samples; heights go with the square root of the number, so that single samples show.
        marks: Where the top K lie, in per cent of the width.
        zero: Where zero lies, in per cent of the width; None where it is outside.
        low: The lowest score.
        high: The highest score.
    """

    bars: list[Bar]
    marks: list[float]
    zero: float | None
    low: float
    high: float

    @classmethod
    def of(cls, scores: Tensor, top: Tensor) -> Histogram:
        """Count finite scores [N], at least one, and mark the scores ``top`` [K] among them."""
        scores = scores.double()
        low, high = float(scores.min()), float(scores.max())
        if low == high:
            return cls([Bar(49, 2, 100, len(scores))], [50.0] * len(top), None, low, high)
        counts = torch.histc(scores, BINS, low, high).long().tolist()
        width, most = 100 / BINS, max(counts)
        bars = [
            Bar(place * width, width, 100 * math.sqrt(count / most), count)
            for place, count in enumerate(counts)
            if count
        ]
        axis = Axis(low, high)
        marks = [axis.at(score) for score in top.tolist()]
        return cls(bars, marks, axis.at(0.0) if low <= 0 <= high else None, low, high)


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from ``low`` to ``high``, which differ."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """Return an axis that holds zero and all finite values, with some room at both ends."""
        finite = [0.0, *(value for value in values if math.isfinite(value))]
        room = 0.06 * (max(finite) - min(finite)) or 1.0
        return cls(min(finite) - room, max(finite) + room)

    def at(self, value: float) -> float:
        """Return where a value lies, in per cent of the width."""
        return 100 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Tick:
    """A value that an axis names, and where it lies, in per cent."""

    at: float
    label: str


def ticks(axis: Axis, scale: Scale, most: int = 5) -> list[Tick]:
    """Name round values of an axis: steps of 1, 2 or 5 times a power of ten, at most ``most`` of them."""
    rough = (axis.high - axis.low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    decimals = max(0, -math.floor(math.log10(step / 10.0**scale.exponent) + 1e-9))
    first, last = math.ceil(axis.low / step), math.floor(axis.high / step)
    short = Scale(scale.exponent, decimals)
    return [Tick(axis.at(index * step), short.plain(index * step)) for index in range(first, last + 1)]
