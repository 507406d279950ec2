"""One job of a sweep, in the process that runs it: here, in a worker, or on a node of a cluster."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.errors import UserError
from lightning_attr.cli import FinishedError, run_stage
from tools.sweep.folder import locked, read_status, timed_status

LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """What one process does at a time.

    Args:
        arguments: Of ``lightning-attr``.
        folders: Run folders of the entries that are finished with it.
    """

    arguments: tuple[str, ...]
    folders: tuple[Path, ...]

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folders[0] / LOG


@dataclass(frozen=True)
class Outcome:
    """A job that has ended, and why it failed if it did."""

    job: Job
    error: str | None = None


def run_job(job: Job) -> None:
    """Run a job and write the status of its entries. One that was stopped before goes on from its checkpoint.

    Raises:
        UserError: The run fails by the user's mistake, or another process is at it.
    """
    with ExitStack() as stack:
        for folder in job.folders:
            stack.enter_context(locked(folder))
        for folder in job.folders:
            stack.enter_context(timed_status(folder))
        with suppress(FinishedError):
            run_stage(list(job.arguments))


def run_logged(job: Job, threads: int) -> Outcome:
    """Run a job as a worker does: with so many threads, its output in the log, its error as a value."""
    torch.set_num_threads(threads)
    with logged(job.log):
        try:
            run_job(job)
        except SIGTERMException:
            # Saved. The process must not take another job: whoever stopped it waits for its end.
            os._exit(143)
        except UserError as error:
            return Outcome(job, str(error))
        except Exception as error:
            traceback.print_exc()
            return Outcome(job, f"{type(error).__name__}: {error}")
    return Outcome(job)


def is_running(job: Job) -> bool:
    """Return whether a job was started and has not ended, as far as its status tells."""
    return any(read_status(folder).state == "running" for folder in job.folders)


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
