"""Retrain many models, to check attributions against: leave-K-out, random removals, random subsets, other seeds.

    python -m tools.sweep -c configs/demo/sweep.yaml

Each entry is an ordinary `lightning-attr fit` with a run folder of its own. The same command goes on after a stop;
finished entries are not repeated, and entries may be added to the config. When all are done they become one pack, which
`python -m tools.evaluate` scores methods against.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from rich.table import Table

from datamodules.errors import UserError
from lightning_attr.cli import plain, quiet
from lightning_attr.console import err, out
from lightning_attr.console import run as exit_with_status
from tools.sweep.board import Board
from tools.sweep.folder import SweepFolder
from tools.sweep.local import run_local
from tools.sweep.plan import Entry, Sweep, entries
from tools.sweep.worker import Job, run_job


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: The config does not make sense, or entries failed.
    """
    parser = _parser()
    try:
        parsed = parser.parse_args(arguments)
        options = parser.instantiate_classes(parsed)
    except ArgumentError as error:
        raise UserError(plain(str(error))) from None
    sweep: Sweep = options.sweep
    quiet()
    folder = SweepFolder(sweep, entries(sweep))
    if options.list:
        out.print(_listed(folder))
        return
    folder.start()
    if options.index is not None:
        _run_one(folder, options.index)
        return
    _run_all(folder, options)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m tools.sweep", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config", help="the sweep's config file")
    parser.add_class_arguments(Sweep, "sweep")
    parser.add_argument("--workers", type=int, default=2, help="worker processes on this machine")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each worker")
    parser.add_argument("--index", type=int | None, default=None, help="run this entry alone, for job arrays")
    parser.add_argument("--list", action="store_true", help="show all entries with their index and state")
    return parser


def _run_one(folder: SweepFolder, index: int) -> None:
    if not 0 <= index < len(folder.entries):
        raise UserError(f"index: found {index}, expected 0 to {len(folder.entries) - 1}, the entries of {folder.path}")
    entry = folder.entries[index]
    run_job(_job(folder, entry))
    err.print(f"done: {entry.name}", markup=False)


def _run_all(folder: SweepFolder, options: Any) -> None:
    signal.signal(signal.SIGTERM, _terminated)
    board = Board(folder)
    jobs = [_job(folder, entry) for entry in folder.entries if folder.status(entry).state != "done"]
    if jobs:
        with board.shown():
            for outcome in run_local(jobs, options.workers, options.threads):
                board.ended(outcome)
    out.print(board.table())
    if failures := board.failures():
        for failure in failures:
            err.print(failure, style="red", markup=False, soft_wrap=True)
        raise UserError(f"{folder.path}: {len(failures)} of {len(folder.entries)} entries failed, so there is no pack")


def _job(folder: SweepFolder, entry: Entry) -> Job:
    return Job(tuple(folder.command(entry)), (folder.entry(entry),))


def _listed(folder: SweepFolder) -> Table:
    table = Table(title=str(folder.path), title_justify="left")
    for column in ("index", "entry", "state"):
        table.add_column(column, no_wrap=True)
    for index, entry in enumerate(folder.entries):
        table.add_row(str(index), entry.name, folder.status(entry).state)
    return table


def _terminated(signum: int, frame: object) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    exit_with_status(main)
