"""Several ranks of one run: what they tell each other, and how they end together.

Lightning's launcher runs the user's command once more for every further rank. Ranks wait for each other in collectives,
so one that ends must not leave another behind: neither waiting for ever nor with an account of a lost connection where
the reason is on the screen already.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed
from torch.distributed import DistError

from lightning_attr.console import err
from lightning_attr.errors import UserError

T = TypeVar("T")

#: Process id of rank 0, which started this rank.
PARENT = "LIGHTNING_ATTR_PARENT"
#: More only wait for each other, and a number that is mistyped starts as many processes.
RANKS_OF_A_PROCESSOR = 4
#: Seconds in which ranks that meet the same error both notice it.
GRACE = 3.0
#: Seconds in which a rank ends that has closed its connections.
END = 60.0


def this_rank() -> int:
    """Return the rank of this process: 0 too where there is only one, or where the others are yet to be started."""
    return int(getattr(rank_zero_only, "rank", 0))


def begin_ranks(trainer: Any = None) -> bool:
    """Set this process's rank, and return whether there may be others. Rank 0 alone speaks to the user.

    There are ranks where the trainer's settings ask for more than one. Variables of a scheduler make none: tasks of
    one SLURM job are often runs of their own.

    Args:
        trainer: The trainer's settings; None while they are unknown. Then only rank 0's own children are other ranks.
    """
    several = PARENT in os.environ or (trainer is not None and trainer.num_nodes * _devices(trainer) > 1)
    rank_zero_only.rank = (_get_rank() or 0) if several else 0  # type: ignore[attr-defined]
    err.quiet = this_rank() > 0
    return several


def _devices(trainer: Any) -> int:
    """Return how many devices the trainer's settings ask for on a node."""
    devices = trainer.devices
    if devices in ("auto", -1, "-1"):
        return 1 if trainer.accelerator == "cpu" else max(1, torch.cuda.device_count())
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([each for each in devices.split(",") if each.strip()])
    return int(devices) if isinstance(devices, int) or devices.isdecimal() else 1  # what is neither Lightning refuses


def check_ranks(trainer: pl.Trainer, found: Any) -> None:
    """Check that the run is one process, or ranks that each have the whole model.

    Args:
        trainer: The trainer.
        found: Its strategy, as the settings name it.

    Raises:
        UserError: Ranks would be forked, share the model, or be many more than there are processors.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or not isinstance(strategy.launcher, _SubprocessScriptLauncher | None):
        raise UserError(f"trainer.strategy: found {found}, expected auto or ddp: each rank has the whole model")
    most = RANKS_OF_A_PROCESSOR * (os.cpu_count() or 1)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise UserError(f"trainer.devices: found {trainer.num_devices}, expected at most {most} on this machine")


class OneProcess(LightningEnvironment):
    """The surroundings of a run of one process, whatever the variables of a scheduler say."""

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: there are no further processes to start."""
        return True

    def local_rank(self) -> int:
        """Return 0."""
        return 0

    def node_rank(self) -> int:
        """Return 0."""
        return 0


def gather(trainer: pl.Trainer, value: T) -> list[T]:
    """Return what every rank gives, in the order of ranks; tensors should be on the CPU. All ranks must call it."""
    return [trainer.strategy.broadcast(value, src=rank) for rank in range(trainer.world_size)]


def starts_ranks(trainer: pl.Trainer) -> bool:
    """Return whether this process is to start the other ranks, which Lightning does by running its command again."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return False
    return launcher.num_processes > 1 and not launcher.cluster_environment.creates_processes_externally


def follow_parent() -> None:
    """End this process soon after rank 0, which started it, is gone; even while it waits in a collective."""
    if (parent := os.environ.get(PARENT)) is None or this_rank() == 0:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_speaker(no_error: type[Exception]) -> Iterator[None]:
    """Let a rank beside rank 0 speak to the user where it alone fails.

    Rank 0 ends the others if it fails. So they wait a moment before they tell of an error, which may be its error too,
    or that rank 0 is gone.

    Args:
        no_error: An exception that is not told.
    """
    try:
        yield
    except Exception as error:
        if this_rank() > 0 and not isinstance(error, no_error):
            time.sleep(GRACE)
            err.quiet = False
        raise


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Run a verb of the trainer on this rank, and end the ranks together.

    Raises:
        UserError: Another rank was killed.
        SystemExit: Another rank failed, which said why.
    """
    launcher = trainer.strategy.launcher
    if starts_ranks(trainer):
        os.environ[PARENT] = str(os.getpid())
    try:
        yield
    except BaseException as error:
        _end(_take(launcher), error)
        raise
    finally:
        os.environ.pop(PARENT, None)
    for process in _take(launcher):
        process.wait()
    leave_group()


def leave_group() -> None:
    """Close this rank's connections to the others, which must not be needed any more.

    Python that ends while gloo's threads still hold tensors aborts the process, though all its work is done. Lightning
    closes connections of NCCL alone.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _take(launcher: Any) -> list[Popen[bytes]]:
    """Take the other ranks' processes from Lightning, whose watcher would kill this one too if one of them failed."""
    started: list[Popen[bytes]] = getattr(launcher, "procs", [])
    processes = list(started)
    started.clear()
    return processes


def _end(processes: list[Popen[bytes]], error: BaseException) -> None:
    """End the other ranks. Where one of them failed first, its reason replaces the loss of the connection to it."""
    failed = _first_failed(processes) if is_lost_connection(error) else None
    for process in processes:
        process.kill()
        process.wait()
    if failed is None:
        return
    rank, status = failed
    if status in (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGHUP):
        raise SIGTERMException(status) from error
    if status < 0:
        name = signal.Signals(-status).name
        raise UserError(f"rank {rank}: ended by {name}; the same command goes on from the last checkpoint") from error
    sys.exit(status)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that another rank is gone; gloo has no type of its own for that."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_failed(processes: list[Popen[bytes]]) -> tuple[int, int] | None:
    """Return rank and status of the first process that fails; None if none does for a while."""
    end = time.monotonic() + END
    while processes and time.monotonic() < end:
        for rank, process in enumerate(processes, start=1):
            if process.poll():
                return rank, int(process.returncode)
        time.sleep(0.05)
    return None
