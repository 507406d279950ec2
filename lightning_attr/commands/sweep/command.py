"""Retrain many models, to check attributions against: leave-K-out, random removals, random subsets, other seeds.

    lightning-attr sweep -c configs/demo/sweep.yaml

Each entry is an ordinary ``lightning-attr fit`` with a run folder of its own. The same command goes on after a stop;
finished entries are not repeated, failed ones are tried again, and entries may be added to the config. When all are
done they become one pack, which ``lightning-attr evaluate`` scores methods against.

Entries run in worker processes of this machine, in tasks of a job array by --index (then once without it, which makes
the pack), or on a Ray cluster by --ray, whose nodes must all see the same files at the same paths.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from rich.table import Table
from rich.text import Text

from lightning_attr.cli import quiet
from lightning_attr.commands.sweep.board import Board
from lightning_attr.commands.sweep.budget import lines, planned, seconds_of
from lightning_attr.commands.sweep.cluster import run_cluster
from lightning_attr.commands.sweep.folder import PATIENCE, SweepFolder
from lightning_attr.commands.sweep.grouping import job_alone, members_alone, unfinished_jobs
from lightning_attr.commands.sweep.local import run_local
from lightning_attr.commands.sweep.plan import Subsets, Sweep, entries, store_path, training_config
from lightning_attr.commands.sweep.worker import STOPPED, Job, Outcome, run_job, stop
from lightning_attr.console import command, err, made, note, out, print_table
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.packing import collect
from lightning_attr.options import parsed, parser


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: The config does not make sense, or entries are not done at the end.
    """
    options = parsed_options(arguments)
    sweep: Sweep = options.sweep
    quiet()
    folder = SweepFolder(sweep, entries(sweep))
    if options.list:
        out.print(Text(str(folder.path)), soft_wrap=True)
        print_table(_listed(folder))
        return
    if options.index is not None:
        _check_index(folder, options.index)
    if options.budget is not None:
        _plan(folder, options, arguments)
        return
    folder.start()
    with _stoppable():
        if options.index is not None:
            _run_one(folder, options.index, options.threads)
        else:
            _run_all(folder, options)
            _pack(folder)


def parsed_options(arguments: Sequence[str]) -> Any:
    """Return the options of the command, with its :class:`Sweep`.

    Raises:
        UserError: They do not make sense.
    """
    options = parsed(_parser(), arguments)
    if options.gpus and options.ray is None:
        raise UserError(f"gpus: found {options.gpus:g} without ray, which hands them out; expected ray as well")
    return options


def _parser() -> ArgumentParser:
    of = parser("sweep", __doc__)
    of.add_class_arguments(Sweep, "sweep")
    of.add_argument("--workers", type=PositiveInt, default=2, help="worker processes on this machine")
    of.add_argument(
        "--threads", type=PositiveInt, default=1, help="torch threads of each worker; on Ray the CPUs it takes as well"
    )
    of.add_argument(
        "--group", type=PositiveInt, default=1, help="train so many entries together: faster where models are small"
    )
    of.add_argument(
        "--ray",
        type=str | None,
        default=None,
        help="run on Ray: local starts it here, auto or HOST:PORT joins a cluster; all nodes share the files, and an "
        "entry whose node dies goes on from its last checkpoint on another one",
    )
    of.add_argument(
        "--gpus", type=NonNegativeFloat, default=0, help="GPUs of an entry on Ray; 0.5 lets two entries share one"
    )
    of.add_argument("--index", type=int | None, default=None, help="run this entry alone, for job arrays")
    of.add_argument("--list", action="store_true", help="show all entries with their index and state")
    of.add_argument(
        "--budget", type=str | None, default=None, help="say how many subsets fit into a time such as 8h, and stop"
    )
    return of


def _check_index(folder: SweepFolder, index: int) -> None:
    if not 0 <= index < len(folder.entries):
        raise UserError(f"index: found {index}, expected 0 to {len(folder.entries) - 1}, the entries of {folder.path}")


def _run_one(folder: SweepFolder, index: int, threads: int) -> None:
    torch.set_num_threads(threads)
    entry = folder.entries[index]
    run_job(job_alone(folder, entry), patience=PATIENCE)
    note(f"done: {entry.name}")


def _run_all(folder: SweepFolder, options: Any) -> None:
    board = Board(folder)
    with board.shown():
        failed = _run_jobs(unfinished_jobs(folder, options.group), options, board)
        _run_jobs(members_alone(folder, failed), options, board)
    out.print(board.table(), soft_wrap=True)
    if not_done := board.not_done():
        for line in not_done:
            err.print(line, style="red", soft_wrap=True)
        raise UserError(
            f"{folder.path}: {len(not_done)} of {len(folder.entries)} entries are not done, so no pack is written; the "
            "same command tries them again"
        )


def _run_jobs(jobs: Sequence[Job], options: Any, board: Board) -> list[Job]:
    """Run jobs where the options say, and return those that failed."""
    if not jobs:
        return []
    failed: list[Job] = []
    with closing(_outcomes(jobs, options)) as outcomes:
        for outcome in outcomes:
            board.ended(outcome)
            if outcome.error is not None:
                failed.append(outcome.job)
    return failed


def _outcomes(jobs: Sequence[Job], options: Any) -> Generator[Outcome, None, None]:
    if options.ray is not None:
        return run_cluster(jobs, options.ray, options.threads, options.gpus)
    return run_local(jobs, options.workers, options.threads)


def _pack(folder: SweepFolder) -> None:
    sweep, path = folder.sweep, folder.path / "pack"
    settings = {"training": training_config(sweep.train), "shared": sweep.shared}
    runs = [folder.entry(entry) for entry in folder.entries]
    collect(runs, store_path(sweep), sweep.original, sweep.queries, settings).save(path)
    # Patterns among the scores are the shell's to expand: they are not quoted.
    made([f"{path}.json", f"{path}.safetensors"], " ".join([command("evaluate", path), *sweep.patterns]))


def _listed(folder: SweepFolder) -> Table:
    table = Table("index", "entry", "state")
    for index, entry in enumerate(folder.entries):
        table.add_row(str(index), Text(entry.name), folder.status(entry).state)
    return table


def _plan(folder: SweepFolder, options: Any, arguments: Sequence[str]) -> None:
    """Say what fits into the time, and the command that runs it."""
    budget = planned(folder, seconds_of(options.budget), options.workers)
    for line in lines(budget, options.budget, options.workers):
        out.print(line, soft_wrap=True)
    subsets = replace(folder.sweep.subsets or Subsets(budget.subsets), count=budget.subsets, seeds=budget.seeds)
    words = [word for word in arguments if word != options.budget and not word.startswith("--budget")]
    then = command("sweep", *words, "--sweep.subsets", json.dumps(asdict(subsets)))
    out.print(f"next: {then}", soft_wrap=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """End with status 143 after SIGTERM, when the workers have saved."""
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:  # from ``stop``; Ray passes it on as its base class
        err.print("stopped and saved; the same command goes on from here")
        sys.exit(STOPPED)
    finally:
        signal.signal(signal.SIGTERM, previous)
