"""The pictures that go to TensorBoard show what they were given."""

import numpy as np

from callbacks.pictures import SampleImage, image_grid, image_rows
from lightning_attr.encoders import jpeg


def test_image_grid_shows_every_image_with_its_words() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    images = [SampleImage(jpeg(np.full((16, 16, 3), colour, np.uint8)), f"colour {colour}") for colour in colours]
    figure = image_grid(images, "Colours")
    drawn = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == [image.words for image in images]
    for axis, colour in zip(drawn, colours, strict=True):
        shown = np.asarray(axis.images[0].get_array()).reshape(-1, 3).mean(0)
        np.testing.assert_allclose(shown, colour, atol=8)


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
