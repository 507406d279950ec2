"""Run the jobs of a sweep in worker processes of this machine that stay alive between jobs."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_attr.commands.sweep.worker import STOPPED, Job, Outcome, given_up, is_running, run_logged, stop

#: How often a job whose process was killed is taken up again before it counts as failed.
ATTEMPTS = 3


def run_local(jobs: Sequence[Job], workers: int, threads: int) -> Generator[Outcome, None, None]:
    """Run jobs, each in one of so many processes, and yield them as they end.

    A worker that is killed, by the system where memory runs out for example, loses what its job did since the last
    checkpoint; the others save, and all are started again. When the caller stops iterating, the workers save and end.
    """
    killed: Counter[Job] = Counter()
    waiting = list(jobs)
    while waiting:
        left: list[Job] = []
        with _workers(min(workers, len(waiting))) as pool:
            futures = {pool.submit(_run_in_worker, job, threads): job for job in waiting}
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    left.append(futures[future])
        # A worker that ended in order has left its job waiting. Where none was at work, they all die at their start.
        struck = [job for job in left if is_running(job)]
        killed.update(struck or (left if len(left) == len(waiting) else []))
        yield from (given_up(job, f"its process was killed {ATTEMPTS} times") for job in left if _is_lost(killed, job))
        waiting = [job for job in left if not _is_lost(killed, job)]


def _run_in_worker(job: Job, threads: int) -> Outcome:
    try:
        return run_logged(job, threads)
    except SIGTERMException:
        os._exit(STOPPED)  # the pool would take it for the job's result, and give this process another one


def _is_lost(killed: Counter[Job], job: Job) -> bool:
    return killed[job] >= ATTEMPTS


@contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes that take jobs; at the end they save their checkpoints, and are gone."""
    # Threads of torch do not survive a fork, and forked processes share LMDB environments that they must not use.
    context = multiprocessing.get_context("spawn")
    # A pipe and no event or lock: those that wait for them hang when a process is killed that holds its part of them.
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, _follow, (theirs,))
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown(wait=True, cancel_futures=True)
        theirs.close()


def _follow(parent: Connection) -> None:
    """Let a worker save and end when its parent closes the pipe, or is killed."""
    os.setpgrp()  # Ctrl-C in a terminal reaches the parent's group; it passes it on in order
    signal.signal(signal.SIGTERM, stop)
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)  # there is nothing left to save

    def wait() -> None:
        with suppress(EOFError):
            parent.recv()
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)  # again, for one that arrives between two jobs does not keep the next from starting

    threading.Thread(target=wait, daemon=True).start()
