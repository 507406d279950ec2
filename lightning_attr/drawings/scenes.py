"""Where things are: grounds painted behind them.

Coordinates are in units of the image's side: x to the right and y down, from 0 to 1.
"""

from collections.abc import Iterator

from lightning_attr.drawings.things import Points

Colour = tuple[int, int, int]
Ground = tuple[tuple[Colour, Points], ...]


def _band(top: float, bottom: float) -> Points:
    return ((0, top), (1, top), (1, bottom), (0, bottom))


def _hill(left: float, peak: float, right: float, top: float, base: float) -> Points:
    return ((left, base), (peak, top), (right, base))


def _disc(x: float, y: float, radius: float) -> Points:
    steps = [(1, 0), (0.81, 0.59), (0.31, 0.95), (-0.31, 0.95), (-0.81, 0.59)]
    circle = [*steps, *((-u, -v) for u, v in steps)]
    return tuple((x + radius * u, y + radius * v) for u, v in circle)


def _drop(x: float, y: float) -> Points:
    return ((x, y), (x + 0.02, y), (x - 0.03, y + 0.14), (x - 0.05, y + 0.14))


def _specks(places: tuple[tuple[float, float], ...], radius: float, colour: Colour) -> Iterator[tuple[Colour, Points]]:
    yield from ((colour, _disc(x, y, radius)) for x, y in places)


_SCATTERED = (
    (0.1, 0.15),
    (0.3, 0.08),
    (0.52, 0.2),
    (0.72, 0.1),
    (0.9, 0.22),
    (0.2, 0.38),
    (0.8, 0.42),
    (0.08, 0.6),
    (0.93, 0.65),
)
_LOW = ((0.12, 0.8), (0.32, 0.9), (0.55, 0.83), (0.75, 0.93), (0.9, 0.8))

SCENES: dict[str, Ground] = {
    "on paper": (((244, 240, 230), _band(0, 1)),),
    "in a meadow": (
        ((150, 205, 240), _band(0, 0.62)), ((110, 185, 80), _band(0.62, 1)), *_specks(_LOW, 0.025, (250, 230, 90)),
    ),
    "by the sea": (
        ((170, 220, 245), _band(0, 0.45)), ((40, 120, 190), _band(0.45, 0.75)), ((235, 215, 160), _band(0.75, 1)),
    ),
    "at night": (
        ((22, 26, 66), _band(0, 1)), ((40, 44, 80), _band(0.78, 1)),
        *_specks(_SCATTERED, 0.018, (250, 245, 200)),
    ),
    "in the snow": (
        ((190, 205, 225), _band(0, 0.6)), ((248, 250, 252), _band(0.6, 1)),
        *_specks(_SCATTERED, 0.022, (255, 255, 255)),
    ),
    "in the desert": (
        ((250, 225, 150), _band(0, 0.65)), ((255, 245, 190), _disc(0.82, 0.17, 0.1)),
        ((222, 165, 85), _hill(-0.3, 0.25, 0.9, 0.5, 0.7)),
        ((205, 145, 70), _band(0.65, 1)),
    ),
    "in the city": (
        ((205, 205, 215), _band(0, 1)), ((130, 130, 150), ((0, 0.3), (0.2, 0.3), (0.2, 0.8), (0, 0.8))),
        ((150, 150, 168), ((0.25, 0.15), (0.42, 0.15), (0.42, 0.8), (0.25, 0.8))),
        ((120, 120, 140), ((0.6, 0.25), (0.78, 0.25), (0.78, 0.8), (0.6, 0.8))),
        ((145, 145, 160), ((0.83, 0.4), (1, 0.4), (1, 0.8), (0.83, 0.8))), ((80, 80, 90), _band(0.78, 1)),
    ),
    "in the forest": (
        ((70, 125, 90), _band(0, 1)), ((30, 85, 55), _hill(-0.1, 0.1, 0.32, 0.1, 0.8)),
        ((35, 95, 60), _hill(0.2, 0.42, 0.62, 0.02, 0.8)),
        ((28, 80, 52), _hill(0.62, 0.85, 1.1, 0.12, 0.8)), ((60, 70, 40), _band(0.8, 1)),
    ),
    "in the mountains": (
        ((180, 215, 235), _band(0, 1)), ((120, 125, 150), _hill(-0.2, 0.25, 0.7, 0.15, 0.8)),
        ((250, 250, 255), _hill(0.12, 0.25, 0.38, 0.15, 0.32)),
        ((95, 100, 130), _hill(0.35, 0.75, 1.2, 0.25, 0.8)), ((90, 140, 90), _band(0.75, 1)),
    ),
    "in the rain": (
        ((120, 135, 155), _band(0, 1)), ((90, 100, 115), _band(0.8, 1)),
        *(((200, 215, 235), _drop(x, y)) for x, y in _SCATTERED),
    ),
    "on a table": (
        ((225, 205, 180), _band(0, 0.68)), ((140, 90, 50), _band(0.68, 1)), ((165, 110, 65), _band(0.68, 0.74)),
    ),
    "at sunset": (
        ((250, 150, 90), _band(0, 0.35)), ((240, 110, 110), _band(0.35, 0.65)),
        ((255, 225, 130), _disc(0.25, 0.55, 0.14)), ((90, 55, 100), _band(0.65, 1)),
    ),
}  # fmt: skip
"""What is painted of each scene, from back to front, by the words of its caption."""
