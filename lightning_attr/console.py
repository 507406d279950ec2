"""What all commands share: where they print, how they show progress, how they end on a mistake."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from textwrap import fill
from typing import NoReturn

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
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
    except BrokenPipeError:  # ``... | head`` closed our stdout; what is left in its buffer has nowhere to go
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
        """Show the rate of ``task``."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self.unit}/s", style="progress.data.speed")


def progress(unit: str) -> Progress:
    """Return a progress bar on stderr: count, rate in ``unit`` per second, time left.

    It is silent by ``-q`` and off a terminal.
    """
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
    """Print names and values below a title on stdout; lines end between words, and nothing is cut off."""
    shown = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows]
    indent = max((len(name) for name, _ in shown), default=0) + 4
    out.print(Text(title, style="bold"), soft_wrap=True)
    for name, value in shown:
        name = f"  {name}".ljust(indent)
        out.print(Text.assemble((name, "bold"), _wrapped(value, indent).lstrip()), soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table on stdout, every cell whole: where it is wider than the console, each row is a block.

    A block is the first cell on a line of its own, then the others with the names of their columns.
    """
    if Measurement.get(out, out.options.update_width(sys.maxsize), table).maximum <= out.width:
        out.print(table)
        return
    if table.title:
        out.print(table.title, soft_wrap=True)
    names, *columns = table.columns
    for row, name, *pieces in zip(table.rows, names.cells, *map(_pieces, columns), strict=True):
        numbers = _wrapped("  ".join(pieces), 2).replace(_NO_BREAK, " ")
        out.print(Text.assemble((str(name), "bold"), "\n", numbers), style=row.style, soft_wrap=True)


_NO_BREAK = "\N{NO-BREAK SPACE}"


def _pieces(column: Column) -> list[str]:
    """Return the cells of a column with its name; no line ends within one, unless it is longer than a line."""
    pieces = [f"{column.header} {cell}" if str(cell) else "" for cell in column.cells]
    width = max(map(len, pieces), default=0)
    if width > out.width - 2:
        return pieces
    return [piece and piece.ljust(width).replace(" ", _NO_BREAK) for piece in pieces]


def _wrapped(text: str, indent: int) -> str:
    """Return text in lines as wide as the console that end between words."""
    blank = " " * indent
    return fill(
        text, out.width, initial_indent=blank, subsequent_indent=blank, break_long_words=False, break_on_hyphens=False
    )
