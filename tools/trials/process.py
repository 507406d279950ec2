"""``lightning-attr`` in processes that are forked from this one, which has imported everything: no start costs seconds.

This process must have no threads of its own, and never runs what it is to judge.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

CONTEXT = multiprocessing.get_context("fork")

#: What commands import while they run.
MODULES = (
    "lightning_attr.cli", "lightning_attr.commands.evaluate", "lightning_attr.commands.init",
    "lightning_attr.commands.inspect", "lightning_attr.commands.prepare", "lightning_attr.commands.prepare.shapes",
    "lightning_attr.commands.prepare.coco", "lightning_attr.commands.report.command",
    "lightning_attr.commands.sweep.command", "callbacks", "datamodules", "torch.utils.tensorboard",
    "torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg", "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip", "diffusers.models.unets.unet_2d_condition", "diffusers.schedulers",
    "lightning_attr.commands.explain.command", "lightning_attr.commands.prepare.any_source",
    "lightning_attr.commands.prepare.model", "lightning_attr.commands.prepare.queries", "peft", "pyarrow.parquet",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.loaders.single_file",
)  # fmt: skip

#: Bytes of memory of a process: settings ask for more than there is.
MEMORY = 8 << 30


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: Of its exit; negative for a signal that killed it; None where it ran too long.
        out: What it printed.
        err: What it printed on stderr.
        seconds: How long it ran.
    """

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        """Return the last thing that it said."""
        return next((line for line in reversed(f"{self.out}\n{self.err}".splitlines()) if line.strip()), "")


@dataclass(frozen=True)
class Kill:
    """A signal after some seconds."""

    signal: signal.Signals
    after: float


def preload() -> None:
    """Import what commands import, once for all processes."""
    for module in MODULES:
        import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of this


def command(args: Sequence[str], folder: Path, limit: float, kill: Kill | None = None) -> Ended:
    """Run ``lightning-attr ARGS`` in a folder, for so many seconds at most."""
    return forked(lambda: run_here(args), folder, limit, kill)


def forked(work: Callable[[], None], folder: Path, limit: float, kill: Kill | None = None) -> Ended:
    """Run a function in a process of its own, in a folder, for so many seconds at most."""
    with tempfile.TemporaryDirectory(prefix="trial-") as logs:
        out, err = Path(logs, "out"), Path(logs, "err")
        start = time.monotonic()
        process = CONTEXT.Process(target=_child, args=(work, folder, out, err))
        process.start()
        if kill is not None:
            process.join(kill.after)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, kill.signal)
        process.join(max(0.0, limit - (time.monotonic() - start)))
        status = process.exitcode
        if status is None:
            _kill_group(process.pid)
            process.join()
        return Ended(status, _text(out), _text(err), time.monotonic() - start)


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def _kill_group(pid: int | None) -> None:
    try:
        os.killpg(pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid or 0, signal.SIGKILL)  # it has no group of its own yet


def _child(work: Callable[[], None], folder: Path, out: Path, err: Path) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["HOME"] = str(folder)
    os.chdir(folder)
    for path, number in ((Path(os.devnull), 0), (out, 1), (err, 2)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # whatever captures them here
    work()


def run_here(args: Sequence[str]) -> None:
    """Do what the program does: processes that it starts itself must find that program, not this one.

    Words such as ``RANK=1`` before the verb are variables of its environment.
    """
    main: Any = import_module("lightning_attr.main")
    sys.modules["__main__"] = main
    words = list(args)
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        os.environ[name] = value
    sys.argv = ["lightning-attr", *words]
    os.environ["PYTHONPATH"] = str(ROOT)
    main.main()
