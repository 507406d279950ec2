"""Run the jobs of a sweep on the nodes of a Ray cluster.

All nodes must see the same files at the same paths: this clone, its environment, the stores and the sweep's folder. A
job whose node dies is started again on another one, and goes on from its last checkpoint there.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_attr.commands.sweep.worker import Job, Outcome, given_up, run_logged
from lightning_attr.console import signals, warn
from lightning_attr.errors import UserError, one_line

#: How often a job is started again whose worker or node died.
RETRIES = 10

#: Seconds to wait for an entry's lock. File servers let go of those of a node that died after a minute and a half.
PATIENCE = 120.0

#: Seconds that stopped jobs have to save their checkpoints.
GRACE = 60.0

#: Bytes of Ray's store of objects. Ours are tiny, and Ray would take a third of the memory.
OBJECT_STORE = 100_000_000


def run_cluster(jobs: Sequence[Job], address: str, threads: int, gpus: float) -> Generator[Outcome, None, None]:
    """Run jobs as tasks of Ray, and yield them as they end.

    When the caller stops iterating, the tasks save their checkpoints and end.

    Args:
        jobs: What to run.
        address: ``local`` starts Ray on this machine; ``auto`` or ``HOST:PORT`` joins a cluster.
        threads: Torch threads of a job, and the CPUs that Ray sets aside for it.
        gpus: GPUs that Ray sets aside for a job, and the only ones it sees. Parts of one may be shared, such as 0.5.

    Raises:
        UserError: Ray is not installed, or there is no cluster at this address.
    """
    with _connected(address) as ray:
        _check_resources(ray, {"CPU": threads, "GPU": gpus})
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_run_on_node)
        running = {task.remote(job, threads, os.getcwd()): job for job in jobs}
        try:
            while running:
                (reference,), _ = ray.wait(list(running), num_returns=1)
                yield _outcome(ray, reference, running.pop(reference))
        finally:
            _stop(ray, list(running))


def _run_on_node(job: Job, threads: int, directory: str) -> Outcome:
    os.chdir(directory)  # paths of configs are relative to where the command was started
    return run_logged(job, threads, PATIENCE)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError("ray: found no such package, expected it: pip install -e '.[ray]'") from error
    settings = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if address == "local" else {}
    previous = {number: signal.getsignal(number) for number in signals()}
    try:
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"ray: found no cluster at {address} ({one_line(error)}), expected local, auto or HOST:PORT"
        ) from error
    # Ray's own handler of SIGTERM would kill the tasks before they save. Of what handlers raise it passes on
    # KeyboardInterrupt and SystemExit, and swallows all else: then the command would not stop.
    known = dict.fromkeys(previous, previous[signal.SIGTERM]) | {signal.SIGINT: signal.default_int_handler}
    try:
        for number, handler in known.items():
            signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_resources(ray: Any, needed: dict[str, float]) -> None:
    """Warn where no node is large enough; a cluster may still grow."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in needed.items()) for node in nodes):
        wanted = " and ".join(f"{count:g} {name}" for name, count in needed.items())
        warn(f"ray: no node has {wanted}, which an entry needs; waiting for one to join")


def _outcome(ray: Any, reference: Any, job: Job) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        first = next(iter(str(error).splitlines()), "")
        return given_up(job, f"{type(error).__name__}: {first}")
    return outcome


def _stop(ray: Any, references: list[Any]) -> None:
    """Interrupt tasks, as Ctrl-C would, and wait for their ends."""
    for reference in references:
        ray.cancel(reference, force=False)
    if references:
        ray.wait(references, num_returns=len(references), timeout=GRACE)
