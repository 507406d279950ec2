"""A sweep in miniature: its config, its command, and how its results compare."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from miniature import Project

from lightning_attr.artifacts import load_tensors
from lightning_attr.commands.sweep.command import main
from lightning_attr.commands.sweep.folder import Status, read_status
from lightning_attr.commands.sweep.worker import Job, Outcome, run_logged
from lightning_attr.models import load

ROOT = Path(__file__).parents[2]

#: Its entries, in order.
NAMES = ("top/unlearning/query-0/k-3", "random/k-3/0", "subset/0/seed-0", "subset/0/seed-1", "full/seed-1")


@dataclass
class Miniature:
    """A sweep of a project's model. Attributes may be changed until it runs."""

    project: Project
    root: Path
    steps: int = 12
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / "sweep"

    def entry(self, name: str) -> Path:
        return self.folder / "entries" / name

    def status(self, name: str) -> Status:
        return read_status(self.entry(name))

    def args(self, *options: str) -> list[str]:
        """Write the config, and return the arguments of the command."""
        train = self.project.configs()["train"]
        train["trainer"] |= {"max_steps": self.steps, "val_check_interval": self.steps // 3}
        train["checkpoint"]["every_n_train_steps"] = max(2, self.steps // 12)
        config = {
            "folder": str(self.folder),
            "train": [str(self.root / "train.yaml")],
            "original": str(self.project.checkpoint),
            "queries": str(self.project.queries),
            "evaluation": {"timesteps": 4},
            "top": {"scores": {"unlearning": str(self.project.scores)}, "k": [3], "queries": [0]},
            "random": {"k": [3]},
            "subsets": {"count": 1, "seeds": 2},
            "full": {"seeds": 1},
            **self.settings,
        }
        self.root.mkdir(parents=True, exist_ok=True)
        for name, content in (("train", train), ("sweep", {"sweep": config})):
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return ["-c", str(self.root / "sweep.yaml"), *options]

    def run_here(self, indices: Sequence[int]) -> None:
        """Run entries in this process, which spares the start of another."""
        for index in indices:
            main(self.args("--index", str(index)))

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Run the command in a process of its own."""
        command = [sys.executable, "-m", "lightning_attr.main", "sweep", *self.args(*options)]
        return subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=hear_ctrl_c
        )


def hear_ctrl_c() -> None:
    """Undo what a shell does for commands in the background, and their children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def here(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[Outcome]:
    """Run jobs as workers do, in this process."""
    for job in jobs:
        yield run_logged(job, threads)


def assert_same(found: Path, expected: Path) -> None:
    """Compare two finished entries bit by bit: what was measured, and the models."""
    (ours, settings), (theirs, other) = (load_tensors(f / "retraining.safetensors") for f in (found, expected))
    assert settings == other
    assert_equal(ours, theirs)
    weights = [load(f / "checkpoints/last.ckpt").network.state_dict() for f in (found, expected)]
    assert_equal(*weights)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert len(ours) > 0
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: int = 240) -> None:
    """Wait, but not for ever, nor for what a process that has ended was to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()[0]}")
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def worker(status: Status) -> int:
    """The process that runs an entry."""
    return int(status.where.rpartition(":")[2])


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def is_training(sweep: Miniature, name: str) -> Callable[[], bool]:
    """Whether the process of an entry has written a checkpoint of its own, and is not at its end."""

    def check() -> bool:
        status, checkpoint = sweep.status(name), sweep.entry(name) / "checkpoints/last.ckpt"
        return status.state == "running" and checkpoint.exists() and checkpoint.stat().st_mtime > status.since

    return check
