"""Figures of an evaluation. They are plain ``Figure`` objects: no pyplot, no global state, no window.

Shapes: M retrained models.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attr.ground_truth.metrics.bootstrap import Interval
from lightning_attr.ground_truth.metrics.calibration import Reliability
from lightning_attr.ground_truth.metrics.functional import expect, rank_correlation
from lightning_attr.ground_truth.metrics.intervals import mean_interval
from lightning_attr.ground_truth.records import Evaluated, LossChangePoint

RANDOM = "random"
"""The method that removes random samples: the baseline that others must beat."""

INCHES_PER_LETTER = 0.08
"""What a long name takes, at the default size of letters; the axes keep their size."""


def loss_change_figure(points: Sequence[LossChangePoint], noise_floor: Interval | None = None) -> Figure:
    """Draw the loss change Delta L against K: a line per method in its interval's band, random removal in grey.

    Each is the mean over queries and its 95% interval (see ``intervals.mean_interval``). Several points of one method,
    K and query (the models of random removal) are averaged first. NaN is left out, and a single query has no band.

    Args:
        points: The measured loss changes, in any order; methods appear in the legend in the order given.
        noise_floor: The loss change of models that were trained on all samples, with other seeds.

    Raises:
        ValueError: There are no points, or a K is below 1.

    >>> figure = loss_change_figure([LossChangePoint("ekfac", 100, 7, 0.02), LossChangePoint("ekfac", 200, 7, 0.03)])
    >>> figure.axes[0].get_xlabel()
    'K (samples removed)'

    """
    if not points:
        raise ValueError("loss_change_figure got no points, expected at least one")
    if (lowest := min(point.k for point in points)) < 1:
        raise ValueError(f"K is {lowest}, expected at least 1")
    by_method: dict[str, list[LossChangePoint]] = defaultdict(list)
    for point in points:
        by_method[point.method].append(point)
    figure = Figure(figsize=(6.5 + INCHES_PER_LETTER * max(map(len, by_method)), 4), layout="constrained")
    axes = figure.subplots()
    styles = _styles()
    for method, of_method in by_method.items():
        style = {"color": "grey", "linestyle": "--"} if method == RANDOM else next(styles)
        _draw_curve(axes, _curve(of_method), label=method, **style)
    if noise_floor is not None:
        axes.axhspan(noise_floor.low, noise_floor.high, color="black", alpha=0.08, linewidth=0)
        axes.axhline(noise_floor.estimate, color="black", linestyle=":", label="noise floor")
    ks = sorted({point.k for point in points})
    axes.set_xscale("log")  # the Ks of a study are spaced by factors
    axes.set_xlim(ks[0] / 1.3, ks[-1] * 1.3)
    axes.set_xticks(ks, labels=[str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("K (samples removed)")
    axes.set_ylabel("loss change (mean over queries, 95% interval)")
    figure.legend(loc="outside right upper")
    return figure


def _styles() -> Iterator[dict[str, str]]:
    """Yield the style of one method after the other: the default colours but grey, then the same with broken lines."""
    for linestyle in itertools.cycle(["-", "-."]):
        for index in (0, 1, 2, 3, 4, 5, 6, 8, 9):
            yield {"color": f"C{index}", "marker": "os^Dv"[index % 5], "linestyle": linestyle}


def _curve(points: Sequence[LossChangePoint]) -> dict[int, Interval]:
    """Average over queries at each K, in ascending order of K."""
    by_k: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        by_k[point.k][point.query_id].append(point.loss_change)
    return {
        k: mean_interval(
            torch.stack([torch.tensor(of_query, dtype=torch.float64).nanmean() for of_query in queries.values()])
        )
        for k, queries in sorted(by_k.items())
    }


def _draw_curve(axes: Axes, curve: Mapping[int, Interval], label: str, **style: Any) -> None:
    """Draw a line within its band, which goes a little beyond the first and the last K so that a single K shows too."""
    axes.plot(list(curve), [interval.estimate for interval in curve.values()], label=label, **style)
    ks = [min(curve) / 1.05, *curve, max(curve) * 1.05]
    intervals = [curve[min(curve)], *curve.values(), curve[max(curve)]]
    lows, highs = [interval.low for interval in intervals], [interval.high for interval in intervals]
    axes.fill_between(ks, lows, highs, color=style["color"], alpha=0.15, linewidth=0)


def lds_figure(rows: Mapping[str, Interval], ceiling: Interval | None = None) -> Figure:
    """Draw linear datamodelling scores: a point with its interval per row, the ceiling as a line in its band.

    Args:
        rows: Name and LDS of each method, drawn from the top in the order given; an unknown one is an empty row.
        ceiling: What a perfect method would reach, if known.

    Raises:
        ValueError: There are no rows.

    >>> figure = lds_figure({"ekfac": Interval(0.3, 0.2, 0.4), "random": Interval(0.0, -0.1, 0.1)})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['ekfac', 'random']

    """
    if not rows:
        raise ValueError("lds_figure got no rows, expected at least one")
    size = (5 + INCHES_PER_LETTER * max(map(len, rows)), 1.2 + 0.3 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="grey", linewidth=0.8)
    if ceiling is not None:
        axes.axvspan(ceiling.low, ceiling.high, color="black", alpha=0.1, linewidth=0)
        axes.axvline(ceiling.estimate, color="black", linestyle=":", label="ceiling")
        figure.legend(loc="outside upper right")
    for position, interval in enumerate(rows.values()):
        axes.plot([interval.low, interval.high], [position, position], color="C0")
        axes.plot(interval.estimate, position, color="C0", marker="o")
    axes.set_yticks(range(len(rows)), labels=list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("LDS (mean over queries, 95% interval)")
    return figure


def reliability_figure(bins: Reliability, title: str) -> Figure:
    """Draw the reliability diagram of shares: what is due against what they say; the area of a dot is its mass.

    Args:
        bins: Of shares of like size; those without an entry are left out.
        title: Such as the name of the method.

    >>> bins = reliability_bins(torch.tensor([0.8, 0.2]), torch.tensor([1.0, 0.0]))
    >>> reliability_figure(bins, "ekfac").axes[0].get_title()
    'ekfac'

    """
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    axes.scatter(bins.share, bins.truth, 600 * bins.mass.clamp(min=0.01))
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_xlim(0, 1.2)
    axes.set_ylim(0, 1.2)
    axes.set_xlabel("share (mean of a bin)")
    axes.set_ylabel("share that is due")
    axes.set_title(title)
    return figure


def prediction_figure(predicted: Tensor, measured: Tensor, title: str) -> Figure:
    r"""Draw what an attribution predicts for each retrained model against what was measured, for one query.

    Args:
        predicted: Sum of the query's scores over each model's subset, ``[M]`` (see ``functional.subset_sums``).
        measured: Loss of the query under each model, ``[M]``.
        title: What is shown; the LDS of the query, which is Spearman's rho of the sum and the negative loss, follows.

    >>> figure = prediction_figure(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, 0.2, 0.1]), title="query 7")
    >>> figure.axes[0].get_title()
    'query 7\nLDS = ρ(sum, −loss) = 1.00'

    """
    expect("predicted", predicted, (None,))
    expect("measured", measured, tuple(predicted.shape))
    rho = rank_correlation(predicted[None], -measured[None]).item()
    figure = Figure(figsize=(max(5, 1 + INCHES_PER_LETTER * len(title)), 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(predicted.tolist(), measured.tolist(), alpha=0.7, linewidths=0)
    axes.set_xlabel("predicted: sum of scores over the subset")
    axes.set_ylabel("measured: loss of the retrained model")
    shown = "unknown" if math.isnan(rho) else f"{rho:.2f}"
    axes.set_title(f"{title}\nLDS = ρ(sum, −loss) = {shown}", fontsize="medium")
    return figure


def scalars(evaluated: Evaluated) -> dict[str, float]:
    """Return the known means by their names in TensorBoard."""
    values = {f"{each.method}/lds": each.lds.interval.estimate for each in evaluated.scored}
    for small in evaluated.small_removals:
        values |= {f"{each.method}/k={small.k}/lds": each.lds.interval.estimate for each in small.scored}
    for removal in evaluated.removals:
        for name in ("loss_change", "deviation"):
            values[f"{removal.method}/k={removal.k}/{name}"] = getattr(removal, name).interval.estimate
    if evaluated.ceiling is not None:
        values["lds_ceiling"] = evaluated.ceiling.estimate
    return {f"pack/{name}": value for name, value in values.items() if math.isfinite(value)}


def figures(evaluated: Evaluated) -> dict[str, Figure]:
    """Return the figures that there is something to draw in."""
    found = {}
    if evaluated.scored:
        found["lds"] = lds_figure({each.method: each.lds.interval for each in evaluated.scored}, evaluated.ceiling)
    if points := [point for point in evaluated.loss_changes if point.k]:
        floor = evaluated.floor.loss_change.interval if evaluated.floor is not None else None
        found["loss_change"] = loss_change_figure(points, floor)
    if (drawn := evaluated.prediction) is not None:
        title = f"query {drawn.query} by {drawn.method}"
        predicted, measured = (torch.tensor(values).double() for values in (drawn.predicted, drawn.measured))
        found["prediction"] = prediction_figure(predicted, measured, title)
    return found
