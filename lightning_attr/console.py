"""What all commands share: where they print, how they show progress, how they end on a mistake."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from textwrap import fill
from typing import NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from lightning_attr.errors import UserError, explained


class Terminal(Console):
    """A console that takes all text as it is: brackets are no markup, and no character in it commands the terminal."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render without control characters, whoever wrote them."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


out = Terminal()
"""Results: tables and the sentences a user reads at the end."""

err = Terminal(stderr=True)
"""Everything else: progress bars, warnings, errors."""


def printable(text: str) -> str:
    """Return foreign text with a sign in place of every character that is none: controls, turns of direction, halves.

    Line ends and tabs are kept.
    """
    return text if text.isprintable() else _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


#: C0 and C1 but line ends and tabs, marks and turns of direction, line separators, halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


#: The signals to stop that interrupted what this process was doing.
noticed: list[int] = []

#: The warnings that this process has printed.
warned: set[str] = set()


class Stopped(BaseException):
    """A signal to stop was received.

    Args:
        code: The status to exit with.
        says: What the user is told; empty is that it was stopped, and what is kept.
    """

    def __init__(self, code: int, says: str = "") -> None:
        self.code = code
        self.says = says


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: status 0; 1 and one line for a mistake; 130 for Ctrl-C, 143 for SIGTERM.

    Any other exception is a bug of ours and keeps its traceback.
    """
    with ending("what is finished is kept"):
        main()
    sys.exit(0)


@contextmanager
def ending(kept: str) -> Iterator[None]:
    """End in one line where there is a mistake or a signal to stop.

    Args:
        kept: What a stop has left, in words.

    Raises:
        SystemExit: With status 1 for a mistake, 128 and its number for a signal.
    """
    with _stoppable():
        try:
            yield
        except Stopped as stopped:
            word = "interrupted" if stopped.code == 128 + signal.SIGINT else "stopped"
            _end(stopped.says or f"{word}; {kept}", stopped.code)
        except KeyboardInterrupt:
            _end(f"interrupted; {kept}", 128 + signal.SIGINT)
        except BrokenPipeError:  # ``... | head`` closed our stdout; what is left in its buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if noticed:  # a library that was interrupted makes an error of its own of it
                word = "interrupted" if noticed[-1] == signal.SIGINT else "stopped"
                _end(f"{word}; {kept}", 128 + noticed[-1])
            told = error if isinstance(error, UserError) else explained(error)
            if told is None:
                raise
            _end(f"error: {told}", 1, "red")


def signals() -> list[signal.Signals]:
    """Return the signals that stop a run. A terminal that closes is one, unless ``nohup`` has it ignored."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hung_up]


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` at the signals that stop a run."""

    def stop(number: int, frame: object) -> NoReturn:
        noticed.append(number)
        raise Stopped(128 + number)

    noticed.clear()
    previous = {number: signal.signal(number, stop) for number in signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(message: str, status: int, style: str = "") -> NoReturn:
    with suppress(OSError):  # there is no terminal any more
        err.print(message, style=style, soft_wrap=True)
    sys.exit(status)


@contextmanager
def as_steps() -> Iterator[None]:
    """Let commands be the steps of another one: their results go to stderr, and what is made and next is not said."""
    out.stderr = True
    try:
        yield
    finally:
        out.stderr = False


def made(paths: Iterable[object], then: str | None = None) -> None:
    """Say at the end of a command what it made, and what is useful next."""
    if out.stderr:
        return
    out.print(f"made: {', '.join(map(str, paths))}", soft_wrap=True)
    if then is not None:
        out.print(f"next: {then}", soft_wrap=True)


def command(*words: object) -> str:
    """Return ``lightning-attr WORDS``, ready to be pasted into a shell."""
    return shlex.join(["lightning-attr", *map(str, words)])


def note(message: str) -> None:
    """Print on stderr what a user may want to know, unless ``-q`` is given."""
    if not out.quiet:
        err.print(message, soft_wrap=True)


def warn(message: str) -> None:
    """Print one warning line on stderr; once in a process, where several stages come upon the same."""
    if message in warned:
        return
    warned.add(message)
    err.print(f"warning: {message}", style="yellow", soft_wrap=True)


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
        TextColumn("{task.description}", markup=False),
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
