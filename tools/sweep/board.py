"""What a sweep shows while it runs: done, running and failed entries, rate and time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.live import Live
from rich.table import Table

from lightning_attr.console import err
from tools.sweep.folder import State, SweepFolder
from tools.sweep.worker import LOG, Outcome

STATES: tuple[State, ...] = ("done", "running", "waiting", "failed")


class Board:
    """Counts entries by kind and state; a table that follows on a terminal, else a line for each one that ends.

    Args:
        folder: The sweep, whose statuses are read from disk.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self._start = time.perf_counter()
        self._done_before = self._counts()["done"]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table on the terminal up to date."""
        if not err.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=err, refresh_per_second=1, transient=True):
            yield

    def ended(self, outcome: Outcome) -> None:
        """Say that a job has ended."""
        for folder in outcome.job.folders:
            name = folder.relative_to(self.folder.path / "entries")
            if outcome.error is not None:
                err.print(f"failed: {name}: {outcome.error}", style="red", markup=False, soft_wrap=True)
            elif not err.is_terminal:
                err.print(f"done: {name} ({self.progress()})", markup=False, soft_wrap=True)

    def table(self) -> Table:
        """Return the table of kinds by states."""
        table = Table(title=f"{self.folder.path}: {self.progress()}", title_justify="left")
        table.add_column("entries")
        for state in STATES:
            table.add_column(state, justify="right")
        for kind in dict.fromkeys(entry.name.split("/")[0] for entry in self.folder.entries):
            counts = self._counts(kind)
            table.add_row(kind, *(str(counts[state]) for state in STATES))
        return table

    def progress(self) -> str:
        """Return how many are done, the rate and the time left, as far as they are known."""
        counts, total = self._counts(), len(self.folder.entries)
        text = f"{counts['done']}/{total} done"
        here = counts["done"] - self._done_before
        if not here:
            return text
        seconds = (time.perf_counter() - self._start) / here
        left = timedelta(seconds=round(seconds * (counts["running"] + counts["waiting"])))
        return f"{text}, {3600 / seconds:.0f} models/hour, {left} left"

    def failures(self) -> list[str]:
        """Return a line for each failed entry, with its log."""
        statuses = ((entry, self.folder.status(entry)) for entry in self.folder.entries)
        return [
            f"{entry.name}: {status.error} (log: {self.folder.entry(entry) / LOG})"
            for entry, status in statuses
            if status.state == "failed"
        ]

    def _counts(self, kind: str | None = None) -> Counter[State]:
        entries = [entry for entry in self.folder.entries if kind in (None, entry.name.split("/")[0])]
        return Counter(self.folder.status(entry).state for entry in entries)
