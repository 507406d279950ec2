from __future__ import annotations

import io
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from lightning_attr.ground_truth.figures import lds_figure, loss_change_figure, prediction_figure
from lightning_attr.ground_truth.metrics import Interval, mean_interval
from lightning_attr.ground_truth.records import LossChangePoint

CHANGES = {10: [0.1, 0.2, 0.6], 40: [0.5, 0.9, 1.0]}
LDS = {"ekfac": Interval(0.4, 0.3, 0.45), "random": Interval(0.0, -0.1, 0.1)}
CEILING = Interval(0.8, 0.7, 0.85)
UNKNOWN = Interval(math.nan, math.nan, math.nan)
LONG = "unlearning-with-measured-losses-" * 3


def points_of(method: str, changes: dict[int, list[float]]) -> list[LossChangePoint]:
    return [LossChangePoint(method, k, query, value) for k, row in changes.items() for query, value in enumerate(row)]


def line(axes: Axes, label: str) -> Line2D:
    (found,) = (item for item in axes.lines if item.get_label() == label)
    return found


def band_at(axes: Axes, k: int) -> list[float]:
    """The ends of the only band at this K."""
    (band,) = (item for item in axes.collections if isinstance(item, FillBetweenPolyCollection))
    vertices = band.get_paths()[0].vertices
    assert isinstance(vertices, np.ndarray)
    return sorted(vertices[vertices[:, 0] == k, 1].tolist())


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("method", ["ekfac", "random"])
def test_a_method_is_a_line_in_the_band_of_its_intervals(method: str) -> None:
    (axes,) = loss_change_figure(points_of(method, CHANGES)[::-1]).axes
    assert line(axes, method).get_xdata() == pytest.approx([10, 40])
    assert line(axes, method).get_ydata() == pytest.approx([0.3, 0.8])
    for k, values in CHANGES.items():
        expected = mean_interval(torch.tensor(values[::-1], dtype=torch.float64))
        assert band_at(axes, k) == pytest.approx([expected.low, expected.high])


def test_models_of_one_query_are_averaged_first() -> None:
    # Two models per query; their spread must not enter the interval over queries.
    models = [points_of("random", {k: [v + shift for v in row] for k, row in CHANGES.items()}) for shift in (-1, 1)]
    (axes,) = loss_change_figure(models[0] + models[1]).axes
    (alone,) = loss_change_figure(points_of("random", CHANGES)).axes
    for k in CHANGES:
        assert band_at(axes, k) == pytest.approx(band_at(alone, k))


def test_random_removal_is_grey_and_no_other_method_is() -> None:
    names = [f"method {index}" for index in range(12)]
    points = [point for name in [*names, "random"] for point in points_of(name, CHANGES)]
    (axes,) = loss_change_figure(points).axes
    assert line(axes, "random").get_color() == "grey"
    styles = {(line(axes, name).get_color(), line(axes, name).get_linestyle()) for name in names}
    assert len(styles) == 12
    assert "C7" not in {color for color, _ in styles}  # matplotlib's grey


def test_a_single_k_has_a_visible_band_within_the_axes() -> None:
    (axes,) = loss_change_figure(points_of("ekfac", {10: CHANGES[10]})).axes
    bounds = axes.collections[0].get_paths()[0].get_extents()
    left, right = axes.get_xlim()
    assert left < bounds.x0 < 10 < bounds.x1 < right
    assert [bounds.y0, bounds.y1] == pytest.approx(band_at(axes, 10))


def test_a_single_query_has_a_line_without_a_band() -> None:
    (axes,) = loss_change_figure(points_of("ekfac", {k: row[:1] for k, row in CHANGES.items()})).axes
    assert line(axes, "ekfac").get_ydata() == pytest.approx([0.1, 0.5])
    assert not any(len(path.vertices) for path in axes.collections[0].get_paths())


def test_the_noise_floor_is_a_dotted_line_in_its_band() -> None:
    figure = loss_change_figure(points_of("ekfac", CHANGES), noise_floor=Interval(0.2, 0.1, 0.25))
    (axes,) = figure.axes
    floor = line(axes, "noise floor")
    assert floor.get_ydata() == [0.2, 0.2]
    assert floor.get_linestyle() == ":"
    (span,) = (item for item in axes.patches if isinstance(item, Rectangle))
    assert [span.get_y(), span.get_y() + span.get_height()] == pytest.approx([0.1, 0.25])
    assert legend_of(figure) == ["ekfac", "noise floor"]


def test_the_legend_and_the_axis_name_what_was_given() -> None:
    points = points_of("trak", CHANGES) + points_of("random", CHANGES) + points_of("ekfac", CHANGES)
    figure = loss_change_figure(points)
    assert legend_of(figure) == ["trak", "random", "ekfac"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["10", "40"]


def test_nan_is_left_out() -> None:
    # Of a query of its own, and of one that another model has measured.
    unknown = [LossChangePoint("ekfac", 10, query, math.nan) for query in (3, 0)]
    (axes,) = loss_change_figure(points_of("ekfac", CHANGES) + unknown).axes
    assert line(axes, "ekfac").get_ydata() == pytest.approx([0.3, 0.8])


def test_lds_rows_run_from_the_top_with_their_intervals() -> None:
    (axes,) = lds_figure({**LDS, "unknown": UNKNOWN}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ekfac", "random", "unknown"]
    bottom, top = axes.get_ylim()
    assert top < 0 < 2 < bottom  # the first row, at 0, is the uppermost
    ends, point = axes.lines[1:3]  # after the line of chance
    assert (list(ends.get_xdata()), list(ends.get_ydata())) == ([0.3, 0.45], [0, 0])
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([0.4], [0])


def test_the_ceiling_is_a_line_in_its_band() -> None:
    figure = lds_figure(LDS, CEILING)
    (axes,) = figure.axes
    assert line(axes, "ceiling").get_xdata() == [0.8, 0.8]
    (span,) = (item for item in axes.patches if isinstance(item, Rectangle))
    assert [span.get_x(), span.get_x() + span.get_width()] == pytest.approx([0.7, 0.85])
    assert legend_of(figure) == ["ceiling"]
    assert legend_of(lds_figure(LDS)) == []


def test_a_prediction_is_a_point_per_model_under_its_rank_correlation() -> None:
    predicted, measured = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.4, 0.3, 0.1, 0.2])
    (axes,) = prediction_figure(predicted, measured, "ekfac, query 7").axes
    (points,) = (item for item in axes.collections if isinstance(item, PathCollection))
    np.testing.assert_allclose(np.asarray(points.get_offsets()), torch.stack([predicted, measured], dim=1).numpy())
    assert axes.get_title() == "ekfac, query 7\nLDS = ρ(sum, −loss) = 0.80"


def test_a_prediction_of_equal_losses_is_unknown() -> None:
    (axes,) = prediction_figure(torch.arange(3.0), torch.ones(3), "query 7").axes
    assert axes.get_title().endswith("unknown")


FIGURES: dict[str, Callable[[], Figure]] = {
    "loss_change": lambda: loss_change_figure(points_of("ekfac", CHANGES) + points_of("random", {10: [0.1]})),
    "loss_change_long": lambda: loss_change_figure(points_of(LONG, CHANGES)),
    "lds": lambda: lds_figure(LDS, CEILING),
    "lds_long": lambda: lds_figure({LONG: LDS["ekfac"], "unknown": UNKNOWN}),
    "prediction": lambda: prediction_figure(torch.arange(3.0), torch.arange(3.0), "query 7"),
    "prediction_long": lambda: prediction_figure(torch.arange(3.0), torch.arange(3.0), LONG),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_renders_whole_and_leaves_pyplot_alone(name: str) -> None:
    before = plt.get_fignums()
    figure = FIGURES[name]()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert plt.get_fignums() == before
    pixels = np.asarray(Image.open(file).convert("L"))
    assert pixels.std() > 5
    for edge in (pixels[:, :2], pixels[:, -2:], pixels[:2], pixels[-2:]):
        assert edge.min() == 255  # nothing is cut off
    assert figure.axes[0].get_window_extent().width / figure.dpi > 3  # inches


def test_wrong_points_are_named() -> None:
    with pytest.raises(ValueError, match="no points, expected at least one"):
        loss_change_figure([])
    with pytest.raises(ValueError, match="K is 0, expected at least 1"):
        loss_change_figure([LossChangePoint("ekfac", 0, 1, 0.1)])
    with pytest.raises(ValueError, match="no rows, expected at least one"):
        lds_figure({})
    with pytest.raises(ValueError, match=r"measured has shape \[3\], expected \[4\]"):
        prediction_figure(torch.zeros(4), torch.zeros(3), "query 7")
