"""The pictures that go to TensorBoard show what they were given."""

import time

import numpy as np
import pytest

from callbacks.pictures import SampleImage, image_grid, image_rows
from lightning_attr.encoders import jpeg


def test_image_grid_shows_every_image_with_its_words() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    images = [SampleImage(jpeg(np.full((16, 16, 3), colour, np.uint8)), f"colour {colour}") for colour in colours]
    figure = image_grid(images, "Colours")
    figure.canvas.draw()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [image.words for image in images]
    shown = [np.asarray(image.get_array()).reshape(-1, 3).mean(0) for image in axes.images]
    np.testing.assert_allclose(shown, colours, atol=8)
    for number, (image, text) in enumerate(zip(axes.images, axes.texts, strict=True)):
        left, right, bottom, top = image.get_extent()
        assert (int(left), bottom > top, number // 4 * 1.25 < top < bottom < (number // 4 + 1) * 1.25) == (
            number % 4, True, True,
        )  # fmt: skip
        assert left < text.get_position()[0] < right
        assert text.get_position()[1] < top


def test_image_rows_show_each_method_and_mark_what_they_share() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    jpegs = [jpeg(np.full((16, 16, 3), colour, np.uint8)) for colour in colours]
    rows = {
        "dot": [SampleImage(jpegs[1], "+3.0", mark="2"), SampleImage(jpegs[2], "+2.0")],
        "a $name$ with a price of 5 $": [SampleImage(jpegs[3], "+1.0"), SampleImage(jpegs[1], "+0.5", mark="2")],
    }
    figure = image_rows(rows, SampleImage(jpegs[0], "Query 7: a $ sign"))
    figure.canvas.draw()
    (axes,) = figure.axes
    shown = [np.asarray(image.get_array()).reshape(-1, 3).mean(0) for image in axes.images]
    np.testing.assert_allclose(shown, [colours[place] for place in (0, 1, 2, 3, 1)], atol=8)
    lefts, tops = zip(*[(image.get_extent()[0], image.get_extent()[3]) for image in axes.images], strict=True)
    assert lefts == (0, 0, 1, 0, 1)
    assert tops[0] < tops[1] == tops[2] < tops[3] == tops[4]
    words = [text.get_text() for text in axes.texts]
    assert words == ["Query 7: a $ sign", "dot", "2", "+3.0", "+2.0", list(rows)[1], "+1.0", "2", "+0.5"]
    assert len(axes.patches) == 2


@pytest.mark.parametrize("letters", ["word ", "x"])
def test_long_captions_are_cut_before_they_are_laid_out(letters: str) -> None:
    picture = jpeg(np.full((16, 16, 3), 200, np.uint8))
    long = letters * (200_000 // len(letters))
    start = time.perf_counter()
    for figure in (
        image_grid([SampleImage(picture, long)] * 3, "title"),
        image_rows({"dot": [SampleImage(picture, "1")]}, SampleImage(picture, long)),
    ):
        figure.canvas.draw()
    assert time.perf_counter() - start < 5


def test_words_without_control_characters_and_pictures_that_are_none() -> None:
    for data in (b"", b"no image", jpeg(np.full((16, 16, 3), 200, np.uint8))[:300]):
        image = SampleImage(data, "a\x1b[2J \x00 $x_{$ b")
        figures = image_grid([image], "$\x1b"), image_rows({"$\x07_{$": [image]}, image)
        for figure in figures:
            figure.canvas.draw()
            texts = [text.get_text() for axis in figure.axes for text in (axis.title, *axis.texts)]
            assert not any(control in text for text in texts for control in ("\x1b", "\x00", "\x07"))
            assert not any(axis.images for axis in figure.axes)
