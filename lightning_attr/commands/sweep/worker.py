"""One job of a sweep, in the process that runs it: here, in a worker, or on a node of a cluster."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_attr.artifacts.before import found
from lightning_attr.cli import FinishedError, run_stage
from lightning_attr.commands.sweep.folder import PATIENCE, read_status, timed_status, write_status
from lightning_attr.errors import UserError
from lightning_attr.runs.lock import locked

LOG = "log.txt"

#: What a finished entry has.
RESULT = "retraining.safetensors"

#: The exit status of a process that was stopped and has saved.
STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Job:
    """What one process does at a time.

    Args:
        arguments: Of ``lightning-attr``.
        folders: Run folders of the entries that are finished with it.
        log: Where a worker's output goes.
    """

    arguments: tuple[str, ...]
    folders: tuple[Path, ...]
    log: Path


@dataclass(frozen=True)
class Outcome:
    """A job that has ended, and why it failed if it did."""

    job: Job
    error: str | None = None


def run_job(job: Job, log: str = "", patience: float = PATIENCE) -> None:
    """Run a job and write the status of its entries. One that was stopped before goes on from its checkpoint.

    Args:
        job: The job. Nothing is done where another process has done it.
        log: Where its output goes, if to a file.
        patience: How many seconds to wait for another process that is at it.

    Raises:
        UserError: The run fails by the user's mistake, or another process is at it.
        SIGTERMException: It was stopped, after saving a checkpoint.
    """
    with ExitStack() as stack:
        for folder in job.folders:
            stack.enter_context(locked(folder, patience))
        if all(read_status(folder).state == "done" for folder in job.folders):
            return
        for folder in job.folders:
            stack.enter_context(timed_status(folder, log))
        with suppress(FinishedError):
            run_stage(list(job.arguments))
        for folder in job.folders:
            if not found(folder / RESULT).exists():
                raise UserError(f"{folder}: the run is finished, but {RESULT} is missing; delete the folder")


def run_logged(job: Job, threads: int, patience: float = PATIENCE) -> Outcome:
    """Run a job as a worker does: with so many threads, its output in the log, its error as a value.

    Raises:
        SIGTERMException: It was stopped, after saving a checkpoint. The process is to end.
    """
    torch.set_num_threads(threads)
    with logged(job.log):
        return _outcome(job, patience)


def _outcome(job: Job, patience: float) -> Outcome:
    try:
        run_job(job, str(job.log), patience)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Outcome(job, str(error))
    except Exception as error:
        traceback.print_exc()
        return Outcome(job, f"{type(error).__name__}: {error}")
    return Outcome(job)


def given_up(job: Job, error: str) -> Outcome:
    """Return the outcome of a job whose process could not write it, and write it."""
    for folder in job.folders:
        write_status(folder, "failed", error, log=str(job.log))
    return Outcome(job, error)


def is_running(job: Job) -> bool:
    """Return whether a job was started and has not ended, as far as its status tells."""
    return any(read_status(folder).state == "running" for folder in job.folders)


def stop(signum: int, frame: object) -> NoReturn:
    """Handle a signal: end as a run does that is stopped while it trains, also where it does not."""
    raise SIGTERMException(128 + signum)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send all that this process prints to a file, libraries in C included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
