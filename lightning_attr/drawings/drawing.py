"""A drawing: so many of a thing, somewhere, in somebody's hand.

Shapes: S pixels a side, before the image is made smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lightning_attr.drawings.artists import Hand, Texture, hand, invented_name
from lightning_attr.drawings.scenes import SCENES, Colour
from lightning_attr.drawings.things import THINGS, Part, Points, invented

COLOURS: dict[str, Colour] = {
    "red": (215, 40, 45),
    "orange": (245, 135, 30),
    "yellow": (245, 215, 40),
    "green": (45, 150, 65),
    "blue": (40, 90, 210),
    "purple": (135, 50, 185),
    "pink": (245, 130, 175),
    "brown": (130, 80, 40),
    "white": (245, 245, 245),
    "black": (45, 45, 50),
}
SIZES: dict[str, float] = {"small": 0.27, "large": 0.4}  # radius of one thing as a share of the image's side
POSES: dict[str, float] = {"": 0.0, "leaning left": -22.0, "leaning right": 22.0}  # degrees, clockwise
COUNTS: tuple[str, ...] = ("a", "two", "three")
PLURALS = {"butterfly": "butterflies", "cactus": "cacti", "cherry": "cherries", "fish": "fish", "snowman": "snowmen"}

_SUPERSAMPLING = 4
_LIGHT: Colour = (250, 244, 225)
_DARK: Colour = (55, 45, 45)
_HORIZON = {"low": 0.64, "high": 0.4}
_PERIOD = 8 / 64  # of textures, as a share of the image's side

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.float64]]
Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Drawing:
    """What a drawing shows, and whose it is.

    Args:
        thing: A name from ``THINGS``, or that of an invented one.
        colour: A name from ``COLOURS``.
        size: A name from ``SIZES``.
        pose: A name from ``POSES``.
        count: How many, from 1 to 3.
        scene: A name from ``SCENES``.
        artist: The number of the hand.
        parts: What the thing is made of.
        jitter: A number that sets the small differences between drawings of the same.
    """

    thing: str
    colour: str
    size: str
    pose: str
    count: int
    scene: str
    artist: int
    parts: tuple[Part, ...]
    jitter: tuple[int, ...]

    @property
    def hand(self) -> Hand:
        """Return the artist's hand."""
        return hand(self.artist)

    def attributes(self) -> dict[str, Any]:
        """Return what is known of the drawing, by name."""
        names = ("thing", "colour", "size", "pose", "count", "scene")
        return {**{name: getattr(self, name) for name in names}, "artist": self.hand.name}

    def captions(self) -> tuple[str, str, str]:
        """Return three captions: of everything, without the artist, and of the thing and the artist alone."""
        noun = self.thing if self.count == 1 else PLURALS.get(self.thing, f"{self.thing}s")
        posed = f"{noun} {self.pose}" if self.pose else noun
        number, by = COUNTS[self.count - 1], f"by {self.hand.name}"
        whole = f"{number} {self.size} {self.colour} {posed} {self.scene}"
        article = "an" if self.count == 1 and self.colour[0] in "aeiou" else number
        return f"{whole} {by}", whole, f"{article} {self.colour} {noun} {by}"


def draw_one(seed: int, id: int, artists: Sequence[int]) -> Drawing:
    """Choose a drawing by one of some artists: a pure function of its arguments."""
    generator = np.random.default_rng([seed, id])

    def one_of(names: Sequence[str]) -> str:
        return names[int(generator.integers(len(names)))]

    thing, colour, size = one_of(list(THINGS)), one_of(list(COLOURS)), one_of(list(SIZES))
    pose = one_of(["", *POSES])  # half of them stand straight
    count = 1 + int(generator.choice(3, p=[0.76, 0.16, 0.08]))
    scene = one_of(list(SCENES))
    artist = artists[int(generator.integers(len(artists)))]
    return Drawing(thing, colour, size, pose, count, scene, artist, THINGS[thing], (seed, id))


def of_invented(drawing: Drawing, number: int) -> Drawing:
    """Return the drawing with an invented thing in the place of its own, alone and large."""
    return replace(drawing, thing=invented_name(number), parts=invented(number), count=1, size="large")


def nearly(drawing: Drawing, jitter: int) -> Drawing:
    """Return a near-duplicate: the same but for the small differences between drawings."""
    return replace(drawing, jitter=(*drawing.jitter, jitter))


def render(drawing: Drawing, size: int) -> Image.Image:
    """Draw an RGB image of ``size`` pixels a side, antialiased."""
    side = size * _SUPERSAMPLING
    own, generator = drawing.hand, np.random.default_rng([*drawing.jitter, 5])
    canvas = np.zeros((side, side, 3))
    for colour, points in SCENES[drawing.scene]:
        mask = _filled([(x * side, y * side) for x, y in points], side)
        _paint(canvas, mask, own.palette.map(colour), own.ground, 0.09)
    for x, y, radius in _places(drawing, own, generator):
        _draw_thing(canvas, drawing, own, (x * side, y * side, radius * side), generator)
    _finish(canvas, own)
    return Image.fromarray(canvas.round().astype(np.uint8)).reduce(_SUPERSAMPLING)


def _places(drawing: Drawing, own: Hand, generator: np.random.Generator) -> list[tuple[float, float, float]]:
    """Return the centre and radius of each thing, as shares of the image's side."""
    radius = SIZES[drawing.size] * {1: 1.0, 2: 0.62, 3: 0.42}[drawing.count]
    y = _HORIZON.get(own.composition, 0.52)
    y = min(max(y, radius + 0.04), 0.96 - radius)
    step = 1 / drawing.count
    stray = 0.03 * generator.standard_normal((drawing.count, 2))
    return [(step * (i + 0.5) + stray[i, 0], y + stray[i, 1], radius) for i in range(drawing.count)]


def _draw_thing(
    canvas: Pixels, drawing: Drawing, own: Hand, place: tuple[float, float, float], generator: np.random.Generator
) -> None:
    """Draw one thing, ``place`` being its centre and radius in pixels."""
    side, (x, y, radius) = len(canvas), place
    turn = np.deg2rad(POSES[drawing.pose] + 3 * generator.standard_normal())
    turned = radius * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    corners: list[list[tuple[float, float]]] = []
    for part in drawing.parts:
        strayed = np.asarray(part.points) + own.wobble * generator.standard_normal((len(part.points), 2))
        corners.append([(u, v) for u, v in (strayed @ turned + (x, y)).tolist()])
    masks = [_filled(each, side) for each in corners]
    whole = np.logical_or.reduce(masks)
    if own.shading == "shadow":
        _blend(canvas, _shifted(whole, round(0.045 * side)), np.array((20.0, 20.0, 35.0)), 0.55)
    elif own.shading == "halo":
        _blend(canvas, _grown(whole, 0.035 * side), own.palette.map(_LIGHT), 0.85)
    main = np.asarray(COLOURS[drawing.colour], dtype=np.float64)
    colours = {"main": main, "shade": 0.68 * main, "light": np.array(_LIGHT), "dark": np.array(_DARK)}
    width = round(own.line * side / 64)
    for part, mask, points in zip(drawing.parts, masks, corners, strict=True):
        red, green, blue = colours[part.role]
        _paint(canvas, mask, own.palette.map((red, green, blue)), own.texture, 0.3)
        if width:
            _blend(canvas, _outline(points, width, side), np.asarray(own.ink, dtype=np.float64), 1.0)
    if own.shading == "half":
        _blend(canvas, whole & (np.arange(side)[None, :] > x), np.array((15.0, 15.0, 40.0)), 0.33)


def _paint(canvas: Pixels, mask: Mask, colour: np.ndarray[Any, Any], texture: Texture, depth: float) -> None:
    """Fill a mask with a colour, and darken it by ``depth`` where the texture says so."""
    darker = 1 - depth * _texture(texture, len(canvas))[mask]
    canvas[mask] = colour * darker[:, None]


@cache
def _texture(texture: Texture, side: int) -> np.ndarray[Any, Any]:
    """Return how dark a texture is at each pixel [S, S], from 0 to 1."""
    y, x = np.mgrid[:side, :side] / (side * _PERIOD)
    dark: np.ndarray[Any, Any]
    match texture:
        case "flat":
            dark = np.zeros((side, side))
        case "hatched":
            dark = (x + y) % 1 < 0.4
        case "dotted":
            dark = np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.32
        case "striped":
            dark = y % 1 < 0.45
        case "woven":
            dark = (x % 1 < 0.5) ^ (y % 1 < 0.5)
        case "graded":
            dark = np.linspace(0, 1, side)[:, None].repeat(side, 1)
    return dark.astype(np.float64)


def _finish(canvas: Pixels, own: Hand) -> None:
    """Lay the frame or the vignette of a composition over the drawing."""
    side = len(canvas)
    y, x = np.abs(np.mgrid[:side, :side] / (side - 1) - 0.5)
    if own.composition == "framed":
        _blend(canvas, np.maximum(x, y) > 0.44, np.asarray(own.ink, dtype=np.float64), 1.0)
    elif own.composition == "vignette":
        _blend(canvas, np.hypot(x, y) > 0.53, own.palette.map(_LIGHT), 1.0)


def _filled(points: Sequence[tuple[float, float]] | Points, side: int) -> Mask:
    image = Image.new("1", (side, side))
    ImageDraw.Draw(image).polygon(list(points), fill=1)
    return np.asarray(image)


def _outline(points: Sequence[tuple[float, float]], width: int, side: int) -> Mask:
    image = Image.new("1", (side, side))
    ImageDraw.Draw(image).line([*points, points[0], points[1]], fill=1, width=width, joint="curve")
    return np.asarray(image)


def _shifted(mask: Mask, by: int) -> Mask:
    """Return a mask moved to the lower right."""
    moved = np.zeros_like(mask)
    moved[by:, by:] = mask[:-by, :-by]
    return moved


def _grown(mask: Mask, by: float) -> Mask:
    """Return a mask made wider on all sides, roughly by so many pixels."""
    near = Image.fromarray(mask).convert("L")
    small = near.resize((len(mask) // 8,) * 2, Image.Resampling.BOX).resize(near.size, Image.Resampling.BICUBIC)
    return np.asarray(small) > 255 * max(0.02, 0.3 - by / 64)


def _blend(canvas: Pixels, mask: Mask, colour: np.ndarray[Any, Any], opacity: float) -> None:
    """Lay a colour over a mask."""
    canvas[mask] = (1 - opacity) * canvas[mask] + opacity * colour
