"""The pictures that go to TensorBoard show what they were given."""

import numpy as np

from callbacks.figures import SampleImage, image_grid
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
