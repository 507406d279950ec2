"""Run the jobs of a sweep in worker processes of this machine that stay alive between jobs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event

from tools.sweep.folder import write_status
from tools.sweep.worker import Job, Outcome, is_running, run_logged

#: How often a job whose process was killed is taken up again before it counts as failed.
ATTEMPTS = 3


def run_local(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[Outcome]:
    """Run jobs, each in one of so many processes, and yield them as they end.

    A worker that is killed, by the system where memory runs out for example, loses what its job did since the last
    checkpoint. When the caller stops iterating, the workers save their checkpoints and end.
    """
    killed: Counter[Job] = Counter()
    waiting = list(jobs)
    while waiting:
        left: list[Job] = []
        for job, future in _pool(waiting, workers, threads):
            try:
                yield future.result()
            except BrokenProcessPool:
                killed[job] += is_running(job)
                if killed[job] < ATTEMPTS:
                    left.append(job)
                else:
                    yield _given_up(job, killed[job])
        waiting = left


def _pool(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[tuple[Job, Future[Outcome]]]:
    # Threads of torch do not survive a fork, and forked processes share LMDB environments that they must not use.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _watch, (stop,)) as pool:
        try:
            futures = {pool.submit(run_logged, job, threads): job for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop.set()


def _watch(stop: Event) -> None:
    """Let a worker end by SIGTERM, which saves a checkpoint, when it is told to stop or its parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on in order
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        while not stop.wait(0.5) and parent.is_alive():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _given_up(job: Job, times: int) -> Outcome:
    error = f"its process was killed {times} times"
    for folder in job.folders:
        write_status(folder, "failed", error)
    return Outcome(job, error)
