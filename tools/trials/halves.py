"""Runs that were interrupted, with all that they leave behind."""

from __future__ import annotations

import os
import pkgutil
import shutil
import signal
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from tools.trials.process import forked, run_here
from tools.trials.project import PARTS, Stage, stages
from tools.trials.trial import LIMIT, Bench

#: The call of a function at which a stage is killed.
MOMENTS: Mapping[str, tuple[str, int]] = {
    "prepare_coco": ("datamodules.store.writer:StoreWriter.write", 8),
    "train": ("lightning_attr.tasks:LatentDiffusion.training_step", 6),
    "attribute/trak": ("lightning_attr.artifacts.chunks:Chunks.write", 3),
    "curvature_ekfac": ("lightning_attr.tasks:Curvature.training_step", 5),
    "unlearn/0": ("lightning_attr.artifacts.chunks:Chunks.write", 3),
    "leave_k_out": ("lightning_attr.tasks:Retraining.training_step", 6),
}


def make(whole: Path) -> None:
    """Make all interrupted runs, each as a copy of ``runs``, below ``halves`` in the project."""
    for name in MOMENTS:
        target = _path(whole, name)
        if not target.exists():
            _make_one(whole, stages()[name], target.with_name(f"{target.name}.making"))
            target.with_name(f"{target.name}.making").rename(target)


def _path(whole: Path, name: str) -> Path:
    return whole / "halves" / name.replace("/", "-")


def _make_one(whole: Path, stage: Stage, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for part in PARTS:
        shutil.copytree(whole / part, folder / part)
    _remove(folder, stage)
    ended = forked(lambda: _until(stage, *MOMENTS[stage.name]), folder, LIMIT)
    if ended.status != -signal.SIGKILL:
        raise RuntimeError(f"{stage.name}: status {ended.status} where it was to be killed\n{ended.err}")
    for part in PARTS:
        if part != "runs":
            shutil.rmtree(folder / part)


def _remove(folder: Path, stage: Stage) -> None:
    """Remove what a stage has made."""
    for name in (*stage.makes, "runs/base_losses.safetensors" if "unlearn" in stage.name else "runs/nothing"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def _until(stage: Stage, function: str, call: int) -> None:
    """Run a stage in this process, which kills itself at a call of a function."""
    holder_name, _, name = function.rpartition("." if "." in function.partition(":")[2] else ":")
    holder: Any = pkgutil.resolve_name(holder_name)
    original = getattr(holder, name)
    calls = 0

    @wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(holder, name, counted)
    run_here(stage.args)


def put_in_place(bench: Bench, name: str) -> None:
    """Put an interrupted run in the place of the finished one."""
    shutil.rmtree(bench.folder / "runs")
    shutil.copytree(_path(bench.whole, name) / "runs", bench.folder / "runs")
