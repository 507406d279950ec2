"""How many models fit into a time, and how much they will tell: ``lightning-attr sweep --budget 8h``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

from lightning_attr.commands.sweep.folder import SweepFolder
from lightning_attr.commands.sweep.plan import query_ids
from lightning_attr.errors import UserError, quoted
from lightning_attr.ground_truth.subsets import FEWEST_SUBSETS
from lightning_attr.runs.folder import seconds_taken

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

SUBSET = "subset/"
"""The beginning of the names of random subsets."""


class Budget(NamedTuple):
    """Which subsets fit.

    Attributes:
        entry_seconds: How long one entry takes.
        measured: How many finished entries that is the mean of; 0 is none: it is then the original's training.
        others: Entries that are no subsets and still to be run.
        subsets: How many in all.
        seeds: Training seeds of each.
        queries: How many queries there are.
    """

    entry_seconds: float
    measured: int
    others: int
    subsets: int
    seeds: int
    queries: int


def seconds_of(text: str) -> int:
    """Return the seconds of a time such as ``8h`` or ``1d12h30m``.

    >>> seconds_of("1h30m")
    5400

    Raises:
        UserError: It is none.
    """
    found = re.fullmatch("".join(rf"(?:(\d{{1,6}}){unit})?" for unit in UNITS), text)
    total = sum(int(part or 0) * UNITS[unit] for part, unit in zip(found.groups(), UNITS, strict=True)) if found else 0
    if total == 0:
        raise UserError(f"budget: found {quoted(text)}, expected a time such as 8h or 1h30m")
    return total


def half_width(queries: int, subsets: int) -> float:
    """Return about half the width of the 95% interval of an LDS, for subsets of two training seeds each.

    A law with two constants, fitted to what was measured on parts of the COCO64 pack (docs/reading-the-numbers.md, 5 to
    40 queries and 8 to 48 subsets), from which it differs by up to an eighth. All queries are judged by the same
    models, hence the part that more queries do not lower.
    """
    return math.sqrt((0.115 + 4.3 / queries) / subsets)


def planned(folder: SweepFolder, seconds: float, workers: int) -> Budget:
    """Return the subsets that can be trained in a time beside the other entries of a sweep.

    Args:
        folder: The sweep, of whose entries some may be done.
        seconds: The time.
        workers: How many entries run at once.

    Raises:
        UserError: There is no time for the fewest subsets, or nobody knows how long an entry takes.
    """
    states = {entry.name: folder.status(entry) for entry in folder.entries}
    times = [status.seconds for status in states.values() if status.state == "done" and status.seconds > 0]
    each = sum(times) / len(times) if times else _of_original(folder)
    done = sum(name.startswith(SUBSET) and status.state == "done" for name, status in states.items())
    others = sum(not name.startswith(SUBSET) and status.state != "done" for name, status in states.items())
    seeds = 2 if folder.sweep.subsets is None else folder.sweep.subsets.seeds
    count = (done + math.floor(seconds * workers / each) - others) // seeds
    if count < FEWEST_SUBSETS:
        needed = (FEWEST_SUBSETS * seeds + others - done) * each / workers
        raise UserError(
            f"budget: an entry takes {each:,.0f} s, and {others} are to be run beside the subsets; expected at least "
            f"{needed / 60:,.0f}m for {FEWEST_SUBSETS} subsets under {seeds} training seeds"
        )
    return Budget(each, len(times), others, count, seeds, len(query_ids(folder.sweep)))


def _of_original(folder: SweepFolder) -> float:
    """Return how long the original's training took."""
    run = Path(folder.sweep.original).parent.parent
    if not (run / "manifest.json").is_file() or (seconds := seconds_taken(run)) is None:
        raise UserError(f"budget: nothing says how long {run} was trained; run an entry first, by --index 0")
    return max(seconds, 1.0)  # manifests have whole seconds


def lines(budget: Budget, time: str, workers: int) -> list[str]:
    """Say it in words, a paragraph a line."""
    known = f"the mean of {budget.measured} that are done" if budget.measured else "as long as the original's training"
    narrow = half_width(budget.queries, budget.subsets)
    found = [
        f"an entry takes {budget.entry_seconds:,.0f} s, {known}",
        f"in {time} with {workers} workers: {budget.subsets:,} subsets under {budget.seeds} training seeds, beside "
        f"{budget.others:,} other entries",
        f"the interval of an LDS over {budget.queries:,} queries is then about ±{narrow:.2f}, as on COCO64 under two "
        "seeds; half of that takes four times as many subsets",
    ]
    if budget.seeds == 1:
        found.append("with one training seed nobody will know the ceiling; two are the least for it")
    return found
