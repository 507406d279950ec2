import io
import math
import statistics

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.container import ErrorbarContainer
from PIL import Image

from lightning_attr.metrics import LossChangePoint, loss_change_figure

CHANGES = {10: [0.1, 0.2, 0.6], 40: [0.5, 0.9, 1.0]}


def points_of(method: str, changes: dict[int, list[float]]) -> list[LossChangePoint]:
    return [LossChangePoint(method, k, query, value) for k, row in changes.items() for query, value in enumerate(row)]


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def error_bars(axes: Axes) -> ErrorbarContainer:
    (container,) = axes.containers
    assert isinstance(container, ErrorbarContainer)
    return container


def band(axes: Axes) -> FillBetweenPolyCollection:
    (collection,) = (item for item in axes.collections if isinstance(item, FillBetweenPolyCollection))
    return collection


def test_a_method_is_a_line_with_error_bars() -> None:
    (axes,) = loss_change_figure(points_of("ekfac", CHANGES)[::-1]).axes
    line, _, (bars,) = error_bars(axes)
    assert list(line.get_xdata()) == [10, 40]
    assert line.get_ydata() == pytest.approx([0.3, 0.8])
    for segment, values in zip(bars.get_segments(), CHANGES.values(), strict=True):
        mean, error = statistics.mean(values), standard_error(values)
        assert segment[:, 1] == pytest.approx([mean - error, mean + error])


def test_random_removal_is_a_band_over_the_means_of_its_models() -> None:
    # Two models per query; their spread must not enter the error over queries.
    models = [points_of("random", {k: [v + shift for v in row] for k, row in CHANGES.items()}) for shift in (-1, 1)]
    (axes,) = loss_change_figure(models[0] + models[1]).axes
    vertices = band(axes).get_paths()[0].vertices
    assert isinstance(vertices, np.ndarray)
    for k, values in CHANGES.items():
        mean, error = statistics.mean(values), standard_error(values)
        assert sorted(vertices[vertices[:, 0] == k, 1]) == pytest.approx([mean - error, mean + error])
    assert not axes.containers


def test_a_single_k_has_a_visible_band() -> None:
    (axes,) = loss_change_figure(points_of("random", {10: CHANGES[10]})).axes
    bounds = band(axes).get_paths()[0].get_extents()
    assert bounds.width > 0
    assert bounds.height == pytest.approx(2 * standard_error(CHANGES[10]))


def test_the_legend_and_the_axis_name_what_was_given() -> None:
    points = points_of("trak", CHANGES) + points_of("random", CHANGES) + points_of("ekfac", CHANGES)
    (axes,) = loss_change_figure(points).axes
    legend = axes.get_legend()
    assert legend is not None
    assert sorted(text.get_text() for text in legend.get_texts()) == ["ekfac", "random", "trak"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "40"]


def test_nan_is_left_out() -> None:
    # Of a query of its own, and of one that another model has measured.
    unknown = [LossChangePoint("ekfac", 10, query, math.nan) for query in (3, 0)]
    (axes,) = loss_change_figure(points_of("ekfac", CHANGES) + unknown).axes
    assert error_bars(axes)[0].get_ydata() == pytest.approx([0.3, 0.8])


def test_the_figure_renders_and_leaves_pyplot_alone() -> None:
    before = plt.get_fignums()
    points = points_of("ekfac", CHANGES) + points_of("random", {10: [0.1], 40: [0.1]})
    file = io.BytesIO()
    loss_change_figure(points).savefig(file, format="png")
    assert plt.get_fignums() == before
    assert np.asarray(Image.open(file).convert("L")).std() > 5


def test_wrong_points_are_named() -> None:
    with pytest.raises(ValueError, match="no points, expected at least one"):
        loss_change_figure([])
    with pytest.raises(ValueError, match="K is 0, expected at least 1"):
        loss_change_figure([LossChangePoint("ekfac", 0, 1, 0.1)])
