"""All queries in one pass, against a sweep of losses for every query, and against one query."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from lightning_attr.gradients import Output
from lightning_attr.losses import sample_losses
from lightning_attr.methods import Influence
from tools.benchmark.case import Case, small_case
from tools.benchmark.timing import Figure, Sizes, Spread, Timed, seconds

QUERIES = 64
MANY = 100


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure influence by EK-FAC, the queries' own gradients included.

    A sweep takes as long for every query, so that one is measured and counted once per query and once for the losses
    before.
    """
    case = small_case(sizes.scored, MANY, sizes.timesteps)
    case.ekfac().save(folder / "curvature.safetensors")
    method = influence(folder / "curvature.safetensors", case)
    works = [seconds(partial(case.scores, method, count)) for count in (1, QUERIES, MANY)]
    one, some, many, sweep = _rounds([*works, seconds(lambda: _sweep(case))], sizes.method_repeats).T
    limit = f"the backward pass, then the queries' own gradients; {sizes.scored} samples at {sizes.timesteps} draws"
    yield Figure("one_pass_vs_sweeps", Spread.of((sweep * (QUERIES + 1) / some).tolist()), limit, 25.0)
    grown = Spread.of((many / one).tolist())
    yield Figure("time_100_vs_1", grown, f"the gradients of {MANY} queries themselves", 1.3, at_most=True)


def influence(curvature: Path, case: Case) -> Influence:
    """Return the method on the case's draws."""
    return Influence(str(curvature), output=Output(draws=case.draws))


def _sweep(case: Case) -> list[Tensor]:
    return [sample_losses(case.model, batch, case.draws) for batch in case.batches()]


def _rounds(works: list[Timed], repeats: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the seconds of several pieces of work that take turns, [repeats, works]."""
    return np.array([[work() for work in works] for _ in range(repeats)])
