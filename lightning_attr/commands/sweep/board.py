"""What a sweep shows while it runs: done, running and failed entries, rate and time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightning_attr.commands.sweep.folder import State, Status, SweepFolder
from lightning_attr.commands.sweep.worker import Outcome
from lightning_attr.console import err, note, out

STATES: tuple[State, ...] = ("done", "running", "waiting", "failed")


class Board:
    """Counts entries by kind and state; a table that follows on a terminal, else a line for each one that ends.

    Args:
        folder: The sweep, whose statuses are read from disk.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self._start = time.time()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table on the terminal up to date."""
        if out.quiet or not err.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=err, refresh_per_second=1, transient=True):
            yield

    def ended(self, outcome: Outcome) -> None:
        """Say that a job has ended."""
        progress = progress_line(list(self._statuses().values()), self._start, time.time())
        for folder in outcome.job.folders:
            name = folder.relative_to(self.folder.path / "entries")
            if outcome.error is not None:
                err.print(f"not done: {name}: {outcome.error}", style="red", soft_wrap=True)
            elif not err.is_terminal:
                note(f"done: {name} ({progress})")

    def table(self) -> RenderableType:
        """Return the table of kinds by states, below a line of progress."""
        statuses = self._statuses()
        table = Table()
        table.add_column("entries")
        for state in STATES:
            table.add_column(state, justify="right")
        kinds: dict[str, Counter[State]] = {}
        for name, status in statuses.items():
            kinds.setdefault(name.split("/")[0], Counter())[status.state] += 1
        for kind, counts in kinds.items():
            table.add_row(kind, *(str(counts[state]) for state in STATES))
        line = progress_line(list(statuses.values()), self._start, time.time())
        return Group(Text(f"{self.folder.path}: {line}"), table)  # no title of the table, which is as narrow as that

    def not_done(self) -> list[str]:
        """Return a line for each entry that is not done: why, and where its log is."""
        return [_reason(name, status) for name, status in self._statuses().items() if status.state != "done"]

    def _statuses(self) -> Mapping[str, Status]:
        return {entry.name: self.folder.status(entry) for entry in self.folder.entries}


def progress_line(statuses: Sequence[Status], start: float, now: float) -> str:
    """Return how many are done, the rate and the time left, as far as they are known.

    An entry that runs counts by the time that it has run, against the mean of those that are done.

    Args:
        statuses: Of all entries.
        start: When this command started, in seconds since 1970.
        now: The time.
    """
    states = Counter(status.state for status in statuses)
    text = f"{states['done']}/{len(statuses)} done"
    known = [status.seconds for status in statuses if status.state == "done" and status.seconds > 0]
    here = sum(status.state == "done" and status.since >= start for status in statuses)
    left = states["running"] + states["waiting"]
    if not known or not here or not left or now <= start:
        return text
    mean = sum(known) / len(known)
    begun = [status.since for status in statuses if status.state == "running"]
    made = here + sum(min((now - max(since, start)) / mean, 1) for since in begun)
    left_over = left - sum(min((now - since) / mean, 1) for since in begun)
    rate = made / (now - start)
    return f"{text}, {3600 * rate:.0f} models/hour, {timedelta(seconds=round(left_over / rate))} left"


def _reason(name: str, status: Status) -> str:
    reasons = {"failed": status.error, "running": f"run by another process, {status.where}"}
    log = f" (log: {status.log})" if status.log else ""
    return f"{name}: {reasons.get(status.state, 'not run')}{log}"
