"""Generated images of coloured shapes with captions, and a rare concept planted among them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

COLOURS: dict[str, Colour] = {
    "red": (214, 39, 40),
    "green": (44, 140, 60),
    "blue": (31, 90, 200),
    "yellow": (240, 205, 30),
    "orange": (245, 130, 30),
    "brown": (125, 75, 40),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (245, 245, 245),
    "black": (25, 25, 25),
    "grey": (128, 128, 128),
    "pink": (245, 185, 200),
}
SIZES: dict[str, float] = {"small": 0.16, "large": 0.27}  # radius as a share of the image's side
COLUMNS: dict[str, float] = {"left": 0.32, "middle": 0.5, "right": 0.68}  # centre, likewise
ROWS: dict[str, float] = {"top": 0.32, "middle": 0.5, "bottom": 0.68}

PLANTED_SHAPE, PLANTED_COLOUR, PLANTED_BACKGROUND = "star", "purple", "turquoise"
"""The rare concept: none of the words, and none of the looks, occurs in any other sample."""

_PURPLE: Colour = (130, 40, 190)
_TURQUOISE: Colour = (60, 205, 195)
_SUPERSAMPLING = 8


def _polygon(corners: int, turn: float, inner: float = 1.0) -> Points:
    """Return corners on the unit circle; with ``inner`` < 1, every second one lies on a smaller circle."""
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    radii = [inner if i % 2 else 1.0 for i in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _cross(arm: float = 0.36) -> Points:
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    points: Points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


SHAPES: dict[str, Points] = {
    "circle": _polygon(60, 0.0),
    "square": _polygon(4, math.pi / 4),
    "triangle": _polygon(3, -math.pi / 2),
    "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
    "cross": _cross(),
}
_STAR = _polygon(10, -math.pi / 2, inner=0.42)


@dataclass(frozen=True)
class Scene:
    """What an image shows."""

    shape: str
    colour: str
    size: str
    row: str
    column: str
    background: str

    @property
    def planted(self) -> bool:
        """Return whether this is the rare concept."""
        return self.shape == PLANTED_SHAPE

    @property
    def position(self) -> str:
        """Return the row and column in words."""
        return "centre" if self.row == self.column == "middle" else f"{self.row} {self.column}"


def draw_scene(seed: int, id: int, planted: bool) -> Scene:
    """Choose a scene: a pure function of its arguments."""
    generator = np.random.default_rng([seed, id])

    def one_of(names: Mapping[str, object]) -> str:
        return list(names)[generator.integers(len(names))]

    shape, colour = one_of(SHAPES), one_of(COLOURS)
    size, row, column, background = one_of(SIZES), one_of(ROWS), one_of(COLUMNS), one_of(BACKGROUNDS)
    if planted:
        # Always large: a small thing fills few latent pixels, so its loss says little about it.
        shape, colour, size, background = PLANTED_SHAPE, PLANTED_COLOUR, "large", PLANTED_BACKGROUND
    return Scene(shape, colour, size, row, column, background)


def captions(scene: Scene) -> tuple[str, str, str]:
    """Return three phrasings, from the fullest to the shortest; none is longer than 12 words."""
    subject = f"{'an' if scene.colour[0] in 'aeiou' else 'a'} {scene.colour} {scene.shape}"
    return (
        f"a {scene.size} {scene.colour} {scene.shape} in the {scene.position} on a {scene.background} background",
        f"on {scene.background}, {subject} that is {scene.size}, {scene.position}",
        subject,
    )


def render(scene: Scene, size: int) -> Image.Image:
    """Draw a scene as an RGB image of ``size`` pixels a side, antialiased."""
    side = size * _SUPERSAMPLING
    points = _STAR if scene.planted else SHAPES[scene.shape]
    colour = _PURPLE if scene.planted else COLOURS[scene.colour]
    x, y, radius = (side * share for share in (COLUMNS[scene.column], ROWS[scene.row], SIZES[scene.size]))
    background = _TURQUOISE if scene.planted else BACKGROUNDS[scene.background]
    image = Image.new("RGB", (side, side), background)
    ImageDraw.Draw(image).polygon([(x + radius * px, y + radius * py) for px, py in points], fill=colour)
    return image.reduce(_SUPERSAMPLING)
