"""Measure how fast the project is on this machine, as ratios to the plainest code that does the same.

    python -m tools.benchmark [--json FILE] [GROUP ...]

A ratio says how many times as fast the project is as the other; 1.0 is equally fast. Both sides take turns; the median
counts. Files are in the page cache, so that processors and memory are compared and not disks. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.table import Table

from lightning_attr.artifacts import write_json
from lightning_attr.console import err, print_table
from tools.benchmark import loss_sweep, methods, peers, prepare, read, sweep, train
from tools.benchmark.timing import Figure, Sizes

GROUPS: Mapping[str, Callable[[Path, Sizes], Iterator[Figure]]] = {
    "read": read.measure,
    "peers": peers.measure,
    "train": train.measure,
    "loss_sweep": loss_sweep.measure,
    "prepare": prepare.measure,
    "sweep": sweep.measure,
    "methods": methods.measure,
}


def main(arguments: Sequence[str] | None = None, sizes: Sizes = Sizes()) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"only these of {', '.join(GROUPS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in this file")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.groups if name not in GROUPS]:
        parser.error(f"found group {unknown[0]!r}, expected some of {', '.join(GROUPS)}")
    figures = list(_measured([name for name in GROUPS if name in args.groups or not args.groups], sizes))
    print_table(_table(figures))
    if args.json:
        values = {figure.name: figure.value and figure.value.median for figure in figures if figure.kept}
        write_json(args.json, values)


def _measured(groups: Sequence[str], sizes: Sizes) -> Iterator[Figure]:
    """Yield the figures of some groups; all that is said meanwhile goes to stderr."""
    for name in groups:
        err.print(name, style="bold")
        with TemporaryDirectory(prefix="benchmark-") as folder, redirect_stdout(sys.stderr):
            for figure in GROUPS[name](Path(folder), sizes):
                err.print(f"  {figure.name}: {_median(figure)}")
                yield figure


def _table(figures: Sequence[Figure]) -> Table:
    threads = torch.get_num_threads()
    machine = f"{_processor()}, {os.cpu_count()} cores, {threads} torch threads, torch {torch.__version__}"
    table = Table(title=f"times as fast; 1.0 = equal\n{machine}", title_justify="left")
    table.add_column("figure")
    for column in ("median", "middle half", "aim"):
        table.add_column(column, justify="right")
    table.add_column("limited by")
    for figure in figures:
        spread = figure.value
        between = "" if spread is None else f"{_number(spread.lower)} to {_number(spread.upper)}"
        aim = "" if figure.aim is None else f"{'≤' if figure.at_most else '≥'} {figure.aim:g}"
        table.add_row(figure.name, _median(figure), between, aim, figure.limit)
    return table


def _median(figure: Figure) -> str:
    return "none" if figure.value is None else _number(figure.value.median)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _processor() -> str:
    """Return the model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
