"""What drawings show: things made of parts, each part a polygon and the role of its colour.

Coordinates are in units of the thing's radius: x to the right and y down, from -1 to 1.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

Points = tuple[tuple[float, float], ...]
Role = Literal["main", "shade", "light", "dark"]


@dataclass(frozen=True)
class Part:
    """One polygon of a thing.

    Args:
        role: ``main`` has the colour that the caption names, ``shade`` a darker one of it; ``light`` and ``dark`` are
            the same for all colours.
        points: Its corners.
    """

    role: Role
    points: Points


def _oval(x: float, y: float, wide: float, high: float, turn: float = 0.0) -> Points:
    """Return an ellipse of half axes ``wide`` and ``high``, turned by degrees."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    around = [2 * math.pi * i / 28 for i in range(28)]
    offsets = [(wide * math.cos(a), high * math.sin(a)) for a in around]
    return tuple((x + u * cos - v * sin, y + u * sin + v * cos) for u, v in offsets)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _bar(x0: float, y0: float, x1: float, y1: float, wide: float) -> Points:
    """Return a straight stroke from one point to another."""
    length = math.hypot(x1 - x0, y1 - y0)
    u, v = (y0 - y1) / length * wide / 2, (x1 - x0) / length * wide / 2
    return ((x0 + u, y0 + v), (x1 + u, y1 + v), (x1 - u, y1 - v), (x0 - u, y0 - v))


def _star(x: float, y: float, radius: float, corners: int, inner: float) -> Points:
    """Return a star; with ``inner`` 1 it is a regular polygon of twice as many corners."""
    angles = [math.pi * i / corners - math.pi / 2 for i in range(2 * corners)]
    radii = [radius * (inner if i % 2 else 1) for i in range(2 * corners)]
    return tuple((x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


def _heart() -> Points:
    angles = [2 * math.pi * i / 32 for i in range(32)]
    xs = [16 * math.sin(a) ** 3 for a in angles]
    ys = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return tuple((0.06 * x, -0.06 * y - 0.05) for x, y in zip(xs, ys, strict=True))


def _crescent() -> Points:
    inside = [-1.95 - 0.3 * i for i in range(9)]
    return (*_oval(0, 0, 0.9, 0.9)[6:23], *((0.35 + 0.62 * math.cos(a), 0.78 * math.sin(a)) for a in inside))


def _thing(*parts: tuple[Role, Points]) -> tuple[Part, ...]:
    return tuple(Part(role, points) for role, points in parts)


_EYE = 0.09

THINGS: dict[str, tuple[Part, ...]] = {
    "anchor": _thing(
        ("main", _bar(0, -0.7, 0, 0.9, 0.24)), ("main", _bar(-0.45, -0.35, 0.45, -0.35, 0.22)),
        ("main", ((-0.95, 0.2), (-0.6, 0.75), (0, 1), (0.6, 0.75), (0.95, 0.2), (0.6, 0.4), (0, 0.72), (-0.6, 0.4))),
        ("light", _oval(0, -0.78, 0.2, 0.2)),
    ),
    "apple": _thing(
        ("main", _oval(-0.28, 0.15, 0.6, 0.75)), ("main", _oval(0.28, 0.15, 0.6, 0.75)),
        ("dark", _bar(0, -0.4, 0.12, -0.95, 0.14)), ("shade", _oval(0.42, -0.75, 0.32, 0.14, -25)),
    ),
    "balloon": _thing(
        ("dark", _bar(0, 0.4, 0.1, 1, 0.07)), ("main", _oval(0, -0.3, 0.62, 0.72)),
        ("shade", ((0, 0.36), (-0.15, 0.56), (0.15, 0.56))), ("light", _oval(-0.24, -0.55, 0.12, 0.2, 20)),
    ),
    "bell": _thing(
        ("shade", _oval(0, 0.72, 0.2, 0.2)),
        ("main", ((-0.3, -0.7), (0.3, -0.7), (0.5, 0.2), (0.85, 0.65), (-0.85, 0.65), (-0.5, 0.2))),
        ("main", _oval(0, -0.68, 0.3, 0.25)), ("light", _box(-0.66, 0.3, 0.66, 0.42)),
    ),
    "bird": _thing(
        ("shade", ((-0.6, 0.1), (-1, -0.2), (-1, 0.3))), ("main", _oval(-0.05, 0.15, 0.65, 0.45)),
        ("main", _oval(0.5, -0.3, 0.34, 0.34)), ("shade", ((-0.35, 0), (0.25, 0), (-0.25, -0.85))),
        ("light", ((0.78, -0.4), (1, -0.22), (0.76, -0.12))), ("dark", _oval(0.56, -0.36, _EYE, _EYE)),
        ("dark", _bar(-0.1, 0.5, -0.1, 0.95, 0.08)), ("dark", _bar(0.15, 0.5, 0.15, 0.95, 0.08)),
    ),
    "boat": _thing(
        ("dark", _bar(0, -0.95, 0, 0.35, 0.1)), ("light", ((0.08, -0.9), (0.08, 0.2), (0.75, 0.2))),
        ("shade", ((-0.08, -0.7), (-0.08, 0.2), (-0.6, 0.2))),
        ("main", ((-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85))),
    ),
    "book": _thing(
        ("shade", ((-0.95, -0.55), (0, -0.4), (0.95, -0.55), (0.95, 0.65), (0, 0.8), (-0.95, 0.65))),
        ("light", ((-0.85, -0.65), (0, -0.45), (0, 0.7), (-0.85, 0.5))),
        ("main", ((0.85, -0.65), (0, -0.45), (0, 0.7), (0.85, 0.5))),
    ),
    "bottle": _thing(
        ("main", _box(-0.38, -0.15, 0.38, 0.95)),
        ("main", ((-0.38, -0.12), (-0.16, -0.45), (0.16, -0.45), (0.38, -0.12))),
        ("main", _box(-0.16, -0.8, 0.16, -0.4)), ("dark", _box(-0.2, -0.98, 0.2, -0.76)),
        ("light", _box(-0.38, 0.2, 0.38, 0.62)),
    ),
    "butterfly": _thing(
        ("main", _oval(-0.5, -0.35, 0.5, 0.42, 35)), ("main", _oval(0.5, -0.35, 0.5, 0.42, -35)),
        ("shade", _oval(-0.4, 0.42, 0.36, 0.32, -30)), ("shade", _oval(0.4, 0.42, 0.36, 0.32, 30)),
        ("light", _oval(-0.55, -0.4, 0.16, 0.16)), ("light", _oval(0.55, -0.4, 0.16, 0.16)),
        ("dark", _oval(0, 0.05, 0.11, 0.65)),
    ),
    "cactus": _thing(
        ("main", _bar(-0.6, -0.25, -0.6, 0.2, 0.26)), ("main", _bar(-0.7, 0.15, 0, 0.15, 0.24)),
        ("main", _bar(0.6, -0.5, 0.6, 0, 0.26)), ("main", _bar(0.7, -0.08, 0, -0.08, 0.24)),
        ("main", _oval(0, -0.1, 0.28, 0.85)), ("shade", _box(-0.45, 0.55, 0.45, 0.95)),
        ("light", _oval(0, -0.9, 0.15, 0.12)),
    ),
    "cake": _thing(
        ("main", _box(-0.8, 0.2, 0.8, 0.85)), ("light", _box(-0.8, 0.05, 0.8, 0.3)),
        ("main", _box(-0.5, -0.35, 0.5, 0.05)),
        ("light", _box(-0.5, -0.45, 0.5, -0.25)), ("dark", _bar(0, -0.8, 0, -0.45, 0.1)),
        ("shade", _oval(0, -0.85, 0.1, 0.15)),
    ),
    "candle": _thing(
        ("shade", _box(-0.65, 0.7, 0.65, 0.95)), ("main", _box(-0.26, -0.25, 0.26, 0.72)),
        ("dark", _bar(0, -0.25, 0, -0.45, 0.08)), ("light", ((0, -1), (0.2, -0.6), (0, -0.38), (-0.2, -0.6))),
    ),
    "car": _thing(
        ("main", ((-0.55, -0.1), (-0.35, -0.6), (0.35, -0.6), (0.6, -0.1))), ("main", _box(-0.98, -0.12, 0.98, 0.4)),
        ("light", ((-0.38, -0.12), (-0.26, -0.46), (0, -0.46), (0, -0.12))),
        ("light", ((0.1, -0.12), (0.1, -0.46), (0.28, -0.46), (0.42, -0.12))),
        ("dark", _oval(-0.52, 0.42, 0.26, 0.26)), ("dark", _oval(0.52, 0.42, 0.26, 0.26)),
    ),
    "castle": _thing(
        ("main", _box(-0.55, -0.2, 0.55, 0.9)), ("shade", _box(-0.95, -0.55, -0.5, 0.9)),
        ("shade", _box(0.5, -0.55, 0.95, 0.9)),
        ("main", ((-1, -0.5), (-0.72, -1), (-0.45, -0.5))), ("main", ((1, -0.5), (0.72, -1), (0.45, -0.5))),
        ("dark", ((-0.2, 0.9), (-0.2, 0.4), (0, 0.2), (0.2, 0.4), (0.2, 0.9))),
    ),
    "cat": _thing(
        ("shade", ((0.5, 0.8), (0.95, 0.6), (0.85, -0.2), (0.7, 0.45))), ("main", _oval(0, 0.5, 0.55, 0.5)),
        ("main", ((-0.5, -0.3), (-0.48, -0.98), (-0.05, -0.6))), ("main", ((0.5, -0.3), (0.48, -0.98), (0.05, -0.6))),
        ("main", _oval(0, -0.3, 0.5, 0.42)), ("dark", _oval(-0.2, -0.34, _EYE, 0.12)),
        ("dark", _oval(0.2, -0.34, _EYE, 0.12)),
        ("light", ((-0.1, -0.16), (0.1, -0.16), (0, -0.04))),
    ),
    "chair": _thing(
        ("shade", _box(-0.55, -0.95, -0.35, 0.95)), ("main", _box(-0.55, -0.9, 0.3, -0.45)),
        ("main", _box(-0.6, 0.1, 0.7, 0.35)),
        ("shade", _box(0.45, 0.3, 0.65, 0.95)),
    ),
    "cherry": _thing(
        ("dark", _bar(-0.45, 0.3, 0.1, -0.85, 0.09)), ("dark", _bar(0.45, 0.4, 0.1, -0.85, 0.09)),
        ("shade", _oval(0.4, -0.72, 0.34, 0.17, -15)), ("main", _oval(-0.45, 0.45, 0.42, 0.42)),
        ("main", _oval(0.48, 0.52, 0.42, 0.42)),
        ("light", _oval(-0.58, 0.32, 0.1, 0.1)), ("light", _oval(0.36, 0.38, 0.1, 0.1)),
    ),
    "clock": _thing(
        ("shade", _bar(-0.5, 0.6, -0.7, 0.98, 0.2)), ("shade", _bar(0.5, 0.6, 0.7, 0.98, 0.2)),
        ("main", _oval(0, 0, 0.85, 0.85)),
        ("light", _oval(0, 0, 0.6, 0.6)), ("dark", _bar(0, 0.05, 0, -0.45, 0.12)),
        ("dark", _bar(-0.05, 0, 0.35, 0.1, 0.12)),
    ),
    "crown": _thing(
        ("main", ((-0.9, -0.6), (-0.45, 0), (0, -0.85), (0.45, 0), (0.9, -0.6), (0.7, 0.5), (-0.7, 0.5))),
        ("shade", _box(-0.72, 0.45, 0.72, 0.75)), ("light", _oval(0, -0.85, 0.13, 0.13)),
        ("light", _oval(-0.9, -0.6, 0.13, 0.13)),
        ("light", _oval(0.9, -0.6, 0.13, 0.13)),
    ),
    "cup": _thing(
        ("shade", _oval(0.6, 0.05, 0.38, 0.38)), ("light", _oval(0.6, 0.05, 0.18, 0.2)),
        ("main", ((-0.75, -0.55), (0.6, -0.55), (0.45, 0.75), (-0.6, 0.75))),
        ("dark", _oval(-0.07, -0.55, 0.66, 0.15)),
    ),
    "drum": _thing(
        ("main", _box(-0.8, -0.3, 0.8, 0.6)), ("main", _oval(0, 0.6, 0.8, 0.25)),
        ("light", _oval(0, -0.3, 0.8, 0.27)),
        ("shade", _bar(-0.75, 0.5, -0.3, 0.05, 0.1)), ("shade", _bar(0.75, 0.5, 0.3, 0.05, 0.1)),
        ("dark", _bar(-0.7, -0.95, 0.1, -0.35, 0.1)),
    ),
    "duck": _thing(
        ("main", ((-0.55, 0.2), (-1, -0.15), (-0.75, 0.5))), ("main", _oval(-0.1, 0.4, 0.75, 0.42)),
        ("main", _oval(0.45, -0.3, 0.36, 0.36)),
        ("light", ((0.72, -0.38), (1, -0.18), (0.72, -0.08))), ("dark", _oval(0.5, -0.4, _EYE, _EYE)),
        ("shade", _oval(-0.2, 0.35, 0.38, 0.2, -10)),
    ),
    "envelope": _thing(
        ("main", _box(-0.95, -0.6, 0.95, 0.65)), ("shade", ((-0.95, -0.6), (0.95, -0.6), (0, 0.2))),
        ("light", _oval(0, 0.1, 0.2, 0.2)),
    ),
    "fish": _thing(
        ("shade", ((-0.4, 0), (-0.98, -0.5), (-0.98, 0.5))), ("shade", ((-0.1, -0.3), (0.1, -0.75), (0.4, -0.25))),
        ("main", _oval(0.2, 0, 0.75, 0.45)),
        ("light", _oval(0.58, -0.12, 0.17, 0.17)), ("dark", _oval(0.62, -0.12, _EYE, _EYE)),
    ),
    "flower": _thing(
        ("dark", _bar(0, 0, 0, 0.98, 0.11)), ("shade", _oval(0.3, 0.65, 0.3, 0.12, -25)),
        *(("main", _oval(x, y, 0.3, 0.3)) for x, y in _star(0, -0.35, 0.42, 5, 1.0)[::2]),
        ("light", _oval(0, -0.35, 0.24, 0.24)),
    ),
    "ghost": _thing(
        ("main", (*_oval(0, -0.3, 0.65, 0.65)[14:], (0.65, -0.3), (0.65, 0.9), (0.32, 0.6), (0, 0.9), (-0.32, 0.6),
                  (-0.65, 0.9))),
        ("dark", _oval(-0.24, -0.35, 0.12, 0.16)), ("dark", _oval(0.24, -0.35, 0.12, 0.16)),
        ("dark", _oval(0, 0.05, 0.12, 0.14)),
    ),
    "guitar": _thing(
        ("dark", _bar(0.1, -0.1, 0.7, -0.95, 0.16)), ("main", _oval(-0.4, 0.5, 0.52, 0.45, -40)),
        ("main", _oval(-0.02, 0.02, 0.38, 0.32, -40)),
        ("light", _oval(-0.28, 0.32, 0.17, 0.17)),
    ),
    "hat": _thing(
        ("main", _oval(0, 0.5, 0.98, 0.28)), ("main", ((-0.55, 0.45), (-0.45, -0.6), (0.45, -0.6), (0.55, 0.45))),
        ("main", _oval(0, -0.6, 0.45, 0.16)),
        ("dark", ((-0.53, 0.2), (0.53, 0.2), (0.55, 0.45), (-0.55, 0.45))),
    ),
    "heart": _thing(
        ("main", _heart()),
        ("light", _oval(-0.42, -0.4, 0.18, 0.12, -35)),
    ),
    "house": _thing(
        ("dark", _box(0.35, -0.85, 0.58, -0.3)), ("light", _box(-0.7, -0.15, 0.7, 0.9)),
        ("main", ((-0.98, -0.1), (0, -0.95), (0.98, -0.1))),
        ("main", _box(-0.18, 0.3, 0.18, 0.9)), ("dark", _box(0.32, 0.1, 0.58, 0.38)),
        ("dark", _box(-0.58, 0.1, -0.32, 0.38)),
    ),
    "key": _thing(
        ("main", _bar(-0.2, 0, 0.95, 0, 0.2)), ("main", _box(0.5, 0, 0.65, 0.4)),
        ("main", _box(0.78, 0, 0.93, 0.32)), ("main", _oval(-0.52, 0, 0.44, 0.44)),
        ("light", _oval(-0.58, 0, 0.19, 0.19)),
    ),
    "kite": _thing(
        ("dark", _bar(0, 0.5, -0.45, 0.98, 0.07)), ("main", ((0, -0.95), (0.65, -0.2), (0, 0.7), (-0.65, -0.2))),
        ("shade", ((0, -0.95), (0.65, -0.2), (0, -0.2))),
        ("shade", ((0, 0.7), (-0.65, -0.2), (0, -0.2))),
    ),
    "lamp": _thing(
        ("dark", _bar(0, -0.1, 0, 0.85, 0.14)), ("shade", _box(-0.45, 0.78, 0.45, 0.95)),
        ("main", ((-0.35, -0.9), (0.35, -0.9), (0.75, 0), (-0.75, 0))),
        ("light", _oval(0, 0.05, 0.25, 0.12)),
    ),
    "moon": _thing(
        ("main", _crescent()),
        ("light", _star(0.55, -0.2, 0.22, 5, 0.45)),
    ),
    "mushroom": _thing(
        ("light", ((-0.25, 0), (0.25, 0), (0.38, 0.9), (-0.38, 0.9))),
        ("main", (*_oval(0, 0.05, 0.9, 0.85)[14:], (0.9, 0.1), (-0.9, 0.1))),
        ("light", _oval(-0.4, -0.25, 0.15, 0.13)), ("light", _oval(0.35, -0.2, 0.15, 0.13)),
        ("light", _oval(0, -0.52, 0.15, 0.12)),
    ),
    "owl": _thing(
        ("main", ((-0.6, -0.6), (-0.55, -0.98), (-0.15, -0.75))),
        ("main", ((0.6, -0.6), (0.55, -0.98), (0.15, -0.75))), ("main", _oval(0, 0.1, 0.65, 0.88)),
        ("shade", _oval(0, 0.42, 0.4, 0.5)), ("light", _oval(-0.27, -0.32, 0.26, 0.26)),
        ("light", _oval(0.27, -0.32, 0.26, 0.26)),
        ("dark", _oval(-0.25, -0.32, 0.12, 0.12)), ("dark", _oval(0.25, -0.32, 0.12, 0.12)),
    ),
    "pear": _thing(
        ("dark", _bar(0, -0.6, 0.15, -0.98, 0.12)), ("main", _oval(0, -0.3, 0.38, 0.45)),
        ("main", _oval(0, 0.38, 0.62, 0.55)), ("light", _oval(-0.28, 0.3, 0.12, 0.2, 15)),
    ),
    "pine": _thing(
        ("dark", _box(-0.15, 0.6, 0.15, 0.98)), ("main", ((0, -0.2), (0.85, 0.7), (-0.85, 0.7))),
        ("shade", ((0, -0.6), (0.65, 0.2), (-0.65, 0.2))),
        ("main", ((0, -0.98), (0.45, -0.25), (-0.45, -0.25))),
    ),
    "plane": _thing(
        ("shade", ((-0.1, 0), (-0.45, -0.85), (-0.2, -0.85), (0.35, 0))), ("main", _oval(0.05, 0.05, 0.92, 0.24)),
        ("shade", ((-0.1, 0.1), (-0.5, 0.8), (-0.25, 0.8), (0.35, 0.1))),
        ("main", ((-0.65, 0), (-0.98, -0.5), (-0.75, -0.5), (-0.4, 0))), ("light", _oval(0.62, 0, 0.14, 0.1)),
    ),
    "rabbit": _thing(
        ("main", _oval(-0.25, -0.62, 0.14, 0.38, -8)), ("main", _oval(0.25, -0.62, 0.14, 0.38, 8)),
        ("main", _oval(0, 0.58, 0.5, 0.42)), ("main", _oval(0, -0.08, 0.42, 0.38)),
        ("dark", _oval(-0.16, -0.12, _EYE, _EYE)), ("dark", _oval(0.16, -0.12, _EYE, _EYE)),
        ("light", _oval(0, 0.6, 0.26, 0.28)),
    ),
    "robot": _thing(
        ("dark", _bar(0, -0.98, 0, -0.7, 0.09)), ("main", _box(-0.42, -0.75, 0.42, -0.15)),
        ("shade", _box(-0.6, -0.08, 0.6, 0.6)), ("main", _box(-0.92, -0.05, -0.66, 0.45)),
        ("main", _box(0.66, -0.05, 0.92, 0.45)), ("main", _box(-0.45, 0.6, -0.12, 0.98)),
        ("main", _box(0.12, 0.6, 0.45, 0.98)),
        ("light", _box(-0.28, -0.6, -0.06, -0.38)), ("light", _box(0.06, -0.6, 0.28, -0.38)),
        ("light", _oval(0, 0.25, 0.18, 0.18)),
    ),
    "rocket": _thing(
        ("shade", ((-0.3, 0.2), (-0.75, 0.8), (-0.3, 0.7))), ("shade", ((0.3, 0.2), (0.75, 0.8), (0.3, 0.7))),
        ("light", ((-0.2, 0.68), (0.2, 0.68), (0, 1))),
        ("main", ((0, -1), (0.34, -0.45), (0.34, 0.7), (-0.34, 0.7), (-0.34, -0.45))),
        ("dark", _oval(0, -0.2, 0.18, 0.18)),
    ),
    "shoe": _thing(
        ("main", ((-0.8, -0.6), (-0.1, -0.6), (0, -0.05), (0.7, 0.15), (0.95, 0.5), (-0.8, 0.5))),
        ("dark", _box(-0.85, 0.45, 0.95, 0.68)),
        ("light", _bar(-0.2, -0.3, 0.1, -0.38, 0.1)), ("light", _bar(-0.1, 0, 0.25, -0.1, 0.1)),
    ),
    "snail": _thing(
        ("shade", ((-0.95, 0.75), (-0.6, 0.45), (0.5, 0.5), (0.62, -0.2), (0.92, -0.2), (0.9, 0.75))),
        ("dark", _bar(0.7, -0.2, 0.6, -0.62, 0.07)), ("dark", _bar(0.82, -0.2, 0.95, -0.6, 0.07)),
        ("main", _oval(-0.15, 0.02, 0.6, 0.58)), ("light", _oval(-0.15, 0.02, 0.34, 0.33)),
        ("main", _oval(-0.15, 0.02, 0.17, 0.17)),
    ),
    "snowman": _thing(
        ("main", _oval(0, 0.5, 0.55, 0.48)), ("main", _oval(0, -0.2, 0.38, 0.36)),
        ("dark", _box(-0.45, -0.6, 0.45, -0.48)), ("dark", _box(-0.27, -0.98, 0.27, -0.5)),
        ("dark", _oval(-0.13, -0.28, 0.06, 0.06)), ("dark", _oval(0.13, -0.28, 0.06, 0.06)),
        ("light", ((0, -0.2), (0.4, -0.1), (0, -0.06))), ("dark", _oval(0, 0.4, 0.07, 0.07)),
    ),
    "star": _thing(("main", _star(0, 0.05, 0.98, 5, 0.42)), ("light", _star(0, 0.05, 0.42, 5, 0.42))),
    "table": _thing(
        ("shade", _box(-0.8, -0.1, -0.6, 0.9)), ("shade", _box(0.6, -0.1, 0.8, 0.9)),
        ("main", _box(-0.98, -0.35, 0.98, -0.05)), ("light", _box(-0.25, -0.6, 0.25, -0.35)),
    ),
    "teapot": _thing(
        ("shade", ((0.4, 0.3), (0.98, -0.4), (0.8, -0.45), (0.4, -0.1))), ("shade", _oval(-0.65, 0.1, 0.33, 0.38)),
        ("light", _oval(-0.68, 0.1, 0.16, 0.2)),
        ("main", _oval(0, 0.2, 0.65, 0.58)), ("dark", _oval(0, -0.36, 0.35, 0.1)),
        ("main", _oval(0, -0.52, 0.12, 0.12)),
    ),
    "tree": _thing(
        ("dark", _box(-0.14, 0.1, 0.14, 0.98)), ("main", _oval(-0.4, -0.15, 0.42, 0.4)),
        ("main", _oval(0.4, -0.15, 0.42, 0.4)), ("main", _oval(0, -0.5, 0.5, 0.45)),
        ("light", _oval(-0.35, -0.25, 0.09, 0.09)), ("light", _oval(0.3, -0.1, 0.09, 0.09)),
        ("light", _oval(0.1, -0.6, 0.09, 0.09)),
    ),
    "turtle": _thing(
        ("shade", _oval(0.8, 0.15, 0.24, 0.2)), ("shade", _oval(-0.45, 0.6, 0.16, 0.25)),
        ("shade", _oval(0.4, 0.6, 0.16, 0.25)),
        ("main", (*_oval(0, 0.45, 0.75, 0.85)[14:], (0.75, 0.45), (-0.75, 0.45))),
        ("light", _oval(0, 0.05, 0.2, 0.18)), ("light", _oval(-0.42, 0.22, 0.12, 0.12)),
        ("light", _oval(0.42, 0.22, 0.12, 0.12)), ("dark", _oval(0.85, 0.1, 0.06, 0.06)),
    ),
    "umbrella": _thing(
        ("dark", _bar(0, -0.2, 0, 0.8, 0.1)), ("dark", _bar(0.03, 0.85, -0.3, 0.85, 0.12)),
        ("main", (*_oval(0, 0.05, 0.95, 0.95)[14:], (0.95, 0.1), (-0.95, 0.1))),
        ("shade", ((0, -0.9), (0.32, 0.08), (-0.32, 0.08))),
    ),
    "whale": _thing(
        ("shade", ((-0.7, 0), (-1, -0.55), (-0.72, -0.4), (-0.5, -0.6), (-0.5, 0.1))),
        ("main", (*_oval(0.1, 0, 0.85, 0.62)[:15], (-0.75, -0.05), (0, -0.4), (0.6, -0.35), (0.95, 0))),
        ("light", _oval(0.3, 0.4, 0.5, 0.16)), ("dark", _oval(0.6, 0.05, 0.08, 0.08)),
        ("light", _bar(0.3, -0.45, 0.3, -0.95, 0.08)), ("light", _bar(0.3, -0.7, 0.55, -0.95, 0.08)),
    ),
}  # fmt: skip
"""Things by name."""


@cache
def invented(number: int) -> tuple[Part, ...]:
    """Return a thing that has never been: a few solids, mirrored, a pure function of its number."""
    generator = np.random.default_rng([number, 41])
    roles: tuple[Role, ...] = ("main", "shade", "light", "dark")
    body = _star(
        0, 0.1, 0.55 + 0.2 * generator.random(), int(generator.integers(2, 7)), 0.55 + 0.45 * generator.random()
    )
    parts = [Part("main", body)]
    for place in range(int(generator.integers(2, 4))):
        x, y = 0.25 + 0.55 * generator.random(), 1.6 * generator.random() - 0.8
        wide, high = 0.12 + 0.25 * generator.random(2)
        role = roles[int(generator.integers(0, 4))]
        solid = _oval(x, y, wide, high) if generator.random() < 0.5 else _box(x - wide, y - high, x + wide, y + high)
        for points in (solid, tuple((-u, v) for u, v in solid)):
            parts.insert(len(parts) if place else 0, Part(role, points))
    parts.append(Part("light", _oval(0, 0.1, 0.16, 0.16)))
    return tuple(parts)
