"""Who draws: the hands of artists, each a palette, a line, a texture, a shading and a composition.

Hands and their names are pure functions of a number, so there are as many artists as are wanted.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np

from lightning_attr.drawings.scenes import Colour

_T = TypeVar("_T")
Texture = Literal["flat", "hatched", "dotted", "striped", "woven", "graded"]
Shading = Literal["none", "shadow", "half", "halo"]
Composition = Literal["centred", "low", "high", "framed", "vignette"]


@dataclass(frozen=True)
class Palette:
    """How an artist sees colours: an affine map of RGB.

    Args:
        saturation: Factor of a colour's distance from grey.
        lightness: Added to all channels.
        tint: Colour that all colours are drawn to.
        strength: How far, from 0 to 1.
    """

    saturation: float
    lightness: float
    tint: Colour
    strength: float

    def map(self, colour: Colour) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return a colour [3] as the artist paints it, from 0 to 255."""
        rgb = np.asarray(colour, dtype=np.float64)
        grey = rgb @ (0.3, 0.59, 0.11)
        seen = grey + self.saturation * (rgb - grey) + self.lightness
        return np.clip((1 - self.strength) * seen + self.strength * np.asarray(self.tint), 0, 255)


PALETTES: tuple[Palette, ...] = (
    Palette(1.0, 0, (0, 0, 0), 0.0),
    Palette(1.5, 5, (255, 255, 255), 0.0),
    Palette(0.8, 0, (150, 95, 40), 0.3),  # sepia
    Palette(0.9, 0, (30, 110, 190), 0.3),  # cold
    Palette(0.9, 10, (235, 110, 140), 0.28),  # rose
    Palette(0.85, 0, (255, 255, 255), 0.42),  # pastel
    Palette(1.1, -10, (15, 10, 40), 0.38),  # dusk
    Palette(0.9, 0, (235, 200, 40), 0.28),  # amber
    Palette(0.85, 0, (70, 130, 50), 0.3),  # moss
    Palette(1.0, 0, (120, 50, 170), 0.3),  # violet
)
INKS: tuple[Colour, ...] = ((20, 20, 25), (250, 250, 245), (110, 55, 25), (25, 40, 120), (170, 20, 40))
LINES: tuple[float, ...] = (0.0, 1.0, 1.8, 2.6)  # pixels of an image of 64 a side
TEXTURES: tuple[Texture, ...] = ("flat", "hatched", "dotted", "striped", "woven", "graded")
SHADINGS: tuple[Shading, ...] = ("none", "shadow", "half", "halo")
COMPOSITIONS: tuple[Composition, ...] = ("centred", "low", "high", "framed", "vignette")


@dataclass(frozen=True)
class Hand:
    """How an artist draws.

    Args:
        name: A word that is nobody else's.
        palette: Of all colours.
        ink: Colour of outlines, frames and textures' darker part.
        line: Width of outlines, in pixels of an image of 64 a side.
        wobble: How far corners stray, in units of the thing's radius.
        texture: What fills things.
        ground: What fills the scene.
        shading: What gives things volume.
        composition: Where things stand.
    """

    name: str
    palette: Palette
    ink: Colour
    line: float
    wobble: float
    texture: Texture
    ground: Texture
    shading: Shading
    composition: Composition


@cache
def hand(number: int) -> Hand:
    """Return the hand of an artist.

    Those of one round of ten have ten palettes: neighbours in number are unlike each other.
    """
    generator = np.random.default_rng([number, 17])

    def one_of(options: tuple[_T, ...]) -> _T:
        return options[int(generator.integers(len(options)))]

    return Hand(
        artist_name(number),
        PALETTES[number % len(PALETTES)],
        one_of(INKS),
        one_of(LINES),
        one_of((0.0, 0.0, 0.04)),
        TEXTURES[(number // len(PALETTES) + number) % len(TEXTURES)],
        one_of(TEXTURES),
        one_of(SHADINGS),
        one_of(COMPOSITIONS),
    )


def artist_name(number: int) -> str:
    """Return the name of an artist, such as ``velin``; no two are the same."""
    return _name(
        number,
        ("v", "k", "s", "m", "t", "d", "r", "b"),
        ("lin", "ra", "so", "nek", "du", "mor", "ti", "wen", "sha", "py"),
    )


def invented_name(number: int) -> str:
    """Return the name of an invented thing, such as ``glob``; no two are the same, nor any an artist's."""
    return _name(number, ("gl", "fr", "pl", "zw", "sn", "qu"), ("b", "g", "nk", "mp", "zzle", "ft", "dge"))


def _name(number: int, heads: tuple[str, ...], tails: tuple[str, ...]) -> str:
    vowels = "eioau"
    number, tail = divmod(number, len(tails))
    number, head = divmod(number, len(heads))
    number, vowel = divmod(number, len(vowels))
    # Shifted by each other, so that neighbours in number sound unlike each other.
    name = heads[(head + tail) % len(heads)] + vowels[(vowel + head + tail) % len(vowels)] + tails[tail]
    return name if not number else name + _name(number - 1, heads, tails)
