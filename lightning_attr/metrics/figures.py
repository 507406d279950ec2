"""Figures of an evaluation. They are plain ``Figure`` objects: no pyplot, no global state, no window."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_attr.metrics.per_query import Summary, summarise

RANDOM = "random"
"""The method that removes random samples: the baseline that others must beat."""


class LossChangePoint(NamedTuple):
    """The loss change of one query under one model that was retrained without K samples."""

    method: str
    k: int
    query_id: int
    loss_change: float


def loss_change_figure(points: Sequence[LossChangePoint]) -> Figure:
    """Loss change Delta L against K: a line with error bars per method, random removal as a band.

    Each is the mean +- standard error over queries. Several points of one method, K and query (the models of random
    removal) are averaged first. NaN is left out, and a single query has no error bar.

    Args:
        points: the measured loss changes, in any order; methods appear in the legend in the order given.

    Raises:
        ValueError: if there are no points, or a K is below 1.

    >>> figure = loss_change_figure([LossChangePoint("ekfac", 100, 7, 0.02), LossChangePoint("ekfac", 200, 7, 0.03)])
    >>> figure.axes[0].get_xlabel()
    'K (samples removed)'

    """
    if not points:
        raise ValueError("loss_change_figure got no points, expected at least one")
    if (lowest := min(point.k for point in points)) < 1:
        raise ValueError(f"K is {lowest}, expected at least 1")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(point.method for point in points):
        curve = _curve([point for point in points if point.method == method])
        (_draw_band if method == RANDOM else _draw_line)(axes, method, curve)
    ks = sorted({point.k for point in points})
    axes.set_xscale("log")  # the Ks of a study are spaced by factors
    axes.set_xticks(ks, labels=[str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("K (samples removed)")
    axes.set_ylabel("loss change (mean ± s.e. over queries)")
    axes.legend()
    return figure


def _curve(points: Sequence[LossChangePoint]) -> dict[int, Summary]:
    """Average over queries at each K, in ascending order of K."""
    by_k: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        by_k[point.k][point.query_id].append(point.loss_change)
    return {
        k: summarise(
            torch.stack([torch.tensor(of_query, dtype=torch.float64).nanmean() for of_query in queries.values()])
        )
        for k, queries in sorted(by_k.items())
    }


def _draw_line(axes: Axes, method: str, curve: dict[int, Summary]) -> None:
    means = [float(summary.mean) for summary in curve.values()]
    errors = [float(summary.standard_error) for summary in curve.values()]
    axes.errorbar(list(curve), means, yerr=errors, marker="o", capsize=3, label=method)


def _draw_band(axes: Axes, method: str, curve: dict[int, Summary]) -> None:
    """Draw a grey band, a little beyond the first and the last K so that a single K shows too."""
    ks = [min(curve) / 1.1, *curve, max(curve) * 1.1]
    summaries = [curve[min(curve)], *curve.values(), curve[max(curve)]]
    means = [float(summary.mean) for summary in summaries]
    errors = [float(summary.standard_error) for summary in summaries]
    lows = [mean - error for mean, error in zip(means, errors, strict=True)]
    highs = [mean + error for mean, error in zip(means, errors, strict=True)]
    axes.fill_between(ks, lows, highs, color="grey", alpha=0.3, linewidth=0)
    axes.plot(ks, means, color="grey", linestyle="--", label=method)
