"""Runs the command line in a process of its own, which a signal ends at a chosen moment."""

import functools
import multiprocessing
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A server that has imported everything forks the processes: each starts in milliseconds instead of ten seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lightning_attr.cli", "torch.utils.tensorboard", "matplotlib.figure"])


@dataclass(frozen=True)
class Moment:
    """The `call`-th call of a function, such as ``os:replace``: then the process sends itself the signal."""

    function: str
    call: int
    sends: signal.Signals = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, negative for a signal, and what it printed on stderr."""

    status: int | None
    stderr: str


def run(args: Sequence[object], log: Path, moment: Moment | None = None) -> Ended:
    """Run ``lightning-attr ARGS`` and wait for its end."""
    process = CONTEXT.Process(target=_child, args=([str(arg) for arg in args], str(log), moment))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{args}: still running; {log.read_text()}")
    return Ended(process.exitcode, log.read_text())


def _child(args: list[str], log: str, moment: Moment | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, sys.stderr.fileno())
    if moment is not None:
        _signal_at(moment)
    from lightning_attr.main import main

    main(args)


def _signal_at(moment: Moment) -> None:
    owner, _, name = moment.function.rpartition("." if "." in moment.function.partition(":")[2] else ":")
    holder: Any = pkgutil.resolve_name(owner)
    original = getattr(holder, name)
    calls = 0

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment.call:
            os.kill(os.getpid(), moment.sends)
        return original(*args, **kwargs)

    setattr(holder, name, counted)
