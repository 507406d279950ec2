import math

import pytest
import torch

from lightning_attr.commands.report.scales import Axis, Histogram, Scale


@pytest.mark.parametrize(
    ("values", "unit", "written"),
    [
        ([0.00037, -0.0001], "× 10⁻³", "+0.370"),
        ([0.993, 0.2], "", "+0.993"),
        ([0.1], "", "+0.100"),
        ([0.099], "× 10⁻³", "+99.00"),
        ([99.0], "", "+99.00"),
        ([12345.6], "× 10³", "+12.35"),
        ([2e-13], "× 10⁻¹²", "+0.200"),
        ([0.0], "", "+0.000"),
        ([math.nan, 0.5], "", "unknown"),
    ],
)
def test_scale_keeps_numbers_short(values: list[float], unit: str, written: str) -> None:
    scale = Scale.of(torch.tensor(values, dtype=torch.float64))
    assert scale.unit == unit
    assert scale.signed(values[0]) == written


def test_scale_of_nothing_and_signs() -> None:
    scale = Scale.of(torch.tensor([]))
    assert (scale.unit, scale.signed(-0.5), scale.plain(0.5)) == ("", "−0.500", "0.500")


def test_histogram_counts_every_score_and_marks_the_top() -> None:
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0))
    top = scores.sort(descending=True).values[:12]
    histogram = Histogram.of(scores, top)
    assert sum(bar.count for bar in histogram.bars) == 500
    assert max(bar.height for bar in histogram.bars) == 100
    tallest = max(bar.count for bar in histogram.bars)
    for bar in histogram.bars:
        left = histogram.low + (histogram.high - histogram.low) * bar.left / 100
        right = histogram.low + (histogram.high - histogram.low) * (bar.left + bar.width) / 100
        inside = int(((scores >= left - 1e-6) & (scores <= right + 1e-6)).sum())
        assert abs(bar.count - inside) <= 2  # scores on an edge belong to one of two bars
        assert bar.height == pytest.approx(100 * math.sqrt(bar.count / tallest))
    assert histogram.marks[0] == 100
    assert histogram.marks == sorted(histogram.marks, reverse=True)
    assert histogram.zero == pytest.approx(100 * -histogram.low / (histogram.high - histogram.low))


def test_histogram_of_equal_scores_is_one_bar() -> None:
    histogram = Histogram.of(torch.full((7,), 0.25), torch.full((3,), 0.25))
    assert [(bar.count, bar.height) for bar in histogram.bars] == [(7, 100)]
    assert histogram.marks == [50.0] * 3


def test_histogram_has_no_zero_line_where_zero_is_outside() -> None:
    assert Histogram.of(torch.tensor([1.0, 2.0]), torch.tensor([2.0])).zero is None


@pytest.mark.parametrize("values", [[0.1, 0.3], [-2.0, math.nan], [], [0.0]])
def test_axis_holds_zero_and_all_values(values: list[float]) -> None:
    axis = Axis.around(values)
    for value in [0.0, *(value for value in values if math.isfinite(value))]:
        assert 0 < axis.at(value) < 100
