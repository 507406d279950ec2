"""What all commands share: where they print, how they show progress, how they end on a mistake."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lightning_attr.errors import UserError

out = Console(highlight=False)
"""Results: tables and the sentences a user reads at the end."""

err = Console(stderr=True, highlight=False)
"""Everything else: progress bars, warnings, errors."""


class Stopped(BaseException):
    """SIGTERM was received."""


def _stop(signum: int, frame: object) -> NoReturn:
    raise Stopped


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: status 0; 1 and one line for a ``UserError``; 130 for Ctrl-C, 143 for SIGTERM.

    Any other exception is a bug of ours and keeps its traceback.
    """
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        main()
    except Stopped:
        err.print("stopped; what is finished is kept")
        sys.exit(128 + signal.SIGTERM)
    except UserError as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted; what is finished is kept")
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `... | head` closed our stdout; what is left in its buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, previous)
    sys.exit(0)


def made(paths: Iterable[object], then: str | None = None) -> None:
    """Say at the end of a command what it made, and what is useful next."""
    out.print(f"made: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)
    if then is not None:
        out.print(f"next: {then}", markup=False, soft_wrap=True)


def command(*words: object) -> str:
    """Return ``lightning-attr WORDS``, ready to be pasted into a shell."""
    return shlex.join(["lightning-attr", *map(str, words)])


def note(message: str) -> None:
    """Print on stderr what a user may want to know, unless ``-q`` is given."""
    if not out.quiet:
        err.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print one warning line on stderr."""
    err.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


class RateColumn(ProgressColumn):
    """Steps per second over the last moments, blank until it is known."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Show the rate of `task`."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self.unit}/s", style="progress.data.speed")


def progress(unit: str) -> Progress:
    """Progress bar on stderr: count, rate in `unit` per second, time left. Silent by ``-q`` and off a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(),
        console=err,
        disable=out.quiet or not err.is_terminal,
    )


def summary(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Print a table of names and values on stdout; values are folded, never cut off."""
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(f"{value:,}" if isinstance(value, int) else str(value)))
    out.print(Text(title, style="bold"), soft_wrap=True)  # not the table's own title: that wraps at the table's width
    out.print(table)
