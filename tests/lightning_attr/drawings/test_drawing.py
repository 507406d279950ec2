"""What drawings look like and are called. Images are compared as numbers from 0 to 255."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from lightning_attr.drawings.artists import PALETTES, artist_name, hand, invented_name
from lightning_attr.drawings.drawing import (
    COLOURS,
    PLURALS,
    POSES,
    SIZES,
    Drawing,
    draw_one,
    nearly,
    of_invented,
    render,
)
from lightning_attr.drawings.scenes import SCENES
from lightning_attr.drawings.things import THINGS

PLAIN = Drawing("heart", "red", "large", "", 1, "on paper", 0, THINGS["heart"], (0, 0))


def pixels(drawing: Drawing, size: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(render(drawing, size), dtype=np.float64)


def least_difference(drawings: Sequence[Drawing]) -> float:
    """Return the mean difference of the two that are most alike."""
    images = [pixels(drawing) for drawing in drawings]
    return min(float(np.abs(one - other).mean()) for one, other in combinations(images, 2))


def test_drawings_are_pure_functions_of_seed_and_id() -> None:
    one, same = draw_one(3, 17, range(60)), draw_one(3, 17, range(60))
    assert one == same
    assert np.array_equal(pixels(one), pixels(same))
    assert draw_one(4, 17, range(60)) != one != draw_one(3, 18, range(60))


def test_there_is_as_much_to_see_as_is_promised() -> None:
    assert len(THINGS) >= 40
    assert len(SCENES) >= 10
    assert len({hand(number) for number in range(60)}) == 60
    seen = [draw_one(0, id, range(60)) for id in range(3000)]
    for name, values in (("thing", THINGS), ("colour", COLOURS), ("size", SIZES), ("pose", POSES), ("scene", SCENES)):
        assert {getattr(drawing, name) for drawing in seen} == set(values)
    assert {drawing.count for drawing in seen} == {1, 2, 3}
    assert {drawing.artist for drawing in seen} == set(range(60))


def test_no_two_things_scenes_or_artists_look_alike() -> None:
    assert least_difference([replace(PLAIN, thing=name, parts=parts) for name, parts in THINGS.items()]) > 4
    assert least_difference([replace(PLAIN, scene=scene) for scene in SCENES]) > 4
    assert least_difference([replace(PLAIN, artist=artist, scene="in a meadow") for artist in range(60)]) > 2
    assert least_difference([of_invented(PLAIN, number) for number in range(20)]) > 1


@pytest.mark.parametrize("palette", PALETTES)
def test_colours_stay_apart_in_every_palette(palette: object) -> None:
    seen = [palette.map(colour) for colour in COLOURS.values()]  # type: ignore[attr-defined]
    assert min(float(np.abs(one - other).max()) for one, other in combinations(seen, 2)) > 20


def test_size_count_and_pose_are_as_the_caption_says() -> None:
    def red(drawing: Drawing) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        image = pixels(drawing)
        return image[..., 0] - image[..., 1] > 90

    large, small = red(PLAIN), red(replace(PLAIN, size="small"))
    assert large.sum() > 1.8 * small.sum()
    three = red(replace(PLAIN, count=3, size="small")).any(0).astype(int)
    assert (np.diff(three, prepend=0) == 1).sum() == 3  # columns in which one begins
    lamp = replace(PLAIN, thing="pine", parts=THINGS["pine"])
    left, right = (red(replace(lamp, pose=pose)) for pose in ("leaning left", "leaning right"))
    top = slice(0, 24)
    assert left[top].nonzero()[1].mean() < right[top].nonzero()[1].mean() - 4


def test_captions() -> None:
    drawing = Drawing("fish", "orange", "small", "leaning left", 2, "by the sea", 0, THINGS["fish"], (0, 0))
    assert drawing.captions() == (
        "two small orange fish leaning left by the sea by velin",
        "two small orange fish leaning left by the sea",
        "two orange fish by velin",
    )
    alone = replace(drawing, thing="owl", count=1, pose="")
    assert alone.captions()[1:] == ("a small orange owl by the sea", "an orange owl by velin")
    assert set(PLURALS) <= set(THINGS)
    longest = max(len(draw_one(0, id, range(60)).captions()[0].split()) for id in range(2000))
    assert longest <= 14  # what fits 16 tokens


def test_names_are_nobody_elses() -> None:
    names = [artist_name(number) for number in range(2000)] + [invented_name(number) for number in range(500)]
    assert len(set(names)) == len(names)
    words = {word for text in (*THINGS, *COLOURS, *SCENES, *POSES) for word in text.split()}
    assert not words & set(names)


def test_near_duplicates_are_near() -> None:
    drawing = replace(PLAIN, scene="in the city")
    copy = np.abs(pixels(drawing) - pixels(nearly(drawing, 9)))
    assert 0 < copy.mean() < 12
    assert copy.mean() < np.abs(pixels(drawing) - pixels(replace(drawing, artist=1))).mean()
    assert nearly(drawing, 9).attributes() == drawing.attributes()
