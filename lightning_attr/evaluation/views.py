"""An evaluation against a pack as TensorBoard shows it: scalars and figures."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure

from lightning_attr.evaluation.records import Evaluated
from lightning_attr.metrics import lds_figure, loss_change_figure, prediction_figure


def scalars(evaluated: Evaluated) -> dict[str, float]:
    """Return the known means by their names in TensorBoard."""
    values = {f"{each.method}/lds": each.lds.interval.estimate for each in evaluated.scored}
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
