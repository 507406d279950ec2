"""All stages on the shapes set: prepare, train, sample, unlearn, attribute, retrain, evaluate, report.

    python -m tools.demo

Writes ``runs/demo/`` with ``report.html`` and ``summary.json``. Started again after a stop, it continues.

One retraining per method removes the top of all queries' rankings, taken in turn, so that the demo stays short.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from datamodules.store import Store
from lightning_attr.artifacts import read_json, write_json
from lightning_attr.artifacts.scores import Scores, load_scores
from lightning_attr.cli import FinishedError, run_stage
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.commands.report.command import main as report
from lightning_attr.console import err, out, print_table, run
from lightning_attr.errors import UserError

ROOT = Path("runs/demo")
CONFIGS = Path("configs/demo")
REMOVED = 16
RANKINGS = {
    "top": "unlearning.safetensors",
    "influence": "attribute/default/scores.safetensors",
    "similarity": "attribute/similarity_latent/scores.safetensors",
}
"""The scores whose top is removed in a retraining, by the name of the retraining; ``top`` is that of unlearning."""
METHODS = {
    "top": "unlearning",
    "influence": "influence, one pass",
    "similarity": "similarity of latents",
    "random": "chance",
}
"""What chose the images that a retraining goes without, in words."""


class Stages:
    """Runs stages one after the other and remembers how long each one took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}

    def __call__(self, name: str, stage: Callable[[], object]) -> None:
        """Run a stage; one that was finished before keeps its time."""
        err.print(name, style="bold")
        start = time.perf_counter()
        try:
            stage()
        except FinishedError:
            return
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 1)
        write_json(self._path, self.seconds)


def cli(verb: str, *configs: str, **overrides: Any) -> None:
    """Run ``lightning-attr`` in this process, which saves the seconds that importing torch takes."""
    run_stage(command(verb, *configs, **overrides))


def command(verb: str, *configs: str, **overrides: Any) -> list[str]:
    """Return the arguments of ``lightning-attr``; ``a__b=1`` stands for ``--a.b 1``."""
    arguments = [verb]
    for config in configs:
        arguments += ["-c", str(CONFIGS / f"{config}.yaml")]
    for key, value in overrides.items():
        arguments += [f"--{key.replace('__', '.')}", str(value)]
    return arguments


def prepare() -> None:
    """Make the stores, once."""
    if (ROOT / "train.lmdb").exists() and (ROOT / "val.lmdb").exists():
        raise FinishedError(f"{ROOT}/train.lmdb: finished already")
    prepare_shapes(["--out", str(ROOT / "train.lmdb"), "--val", str(ROOT / "val.lmdb"), "--count", "400"])


def unlearn() -> None:
    """Unlearn every query, and put their scores into one file."""
    queries = [int(query) for query in Store(str(ROOT / "sample/queries.lmdb")).ids]
    folders = [ROOT / "unlearn" / str(query) for query in queries]
    done = 0
    for query, folder in zip(queries, folders, strict=True):
        try:
            cli("fit", "unlearn", model__init_args__query=query, trainer__default_root_dir=folder)
        except FinishedError:
            done += 1
    if done == len(queries):
        raise FinishedError("all queries are unlearned already")
    Scores.stack([Scores.load(folder / "scores.safetensors") for folder in folders]).save(
        ROOT / "unlearning.safetensors"
    )


def leave_k_out(method: str) -> bool:
    """Retrain without what ``method`` ranks highest; return whether there was anything to do."""
    if method in RANKINGS:
        exclude = f"{{scores: {ROOT / RANKINGS[method]}, top: {REMOVED}}}"
    else:
        exclude = f"{{scores: null, top: null, random: {REMOVED}}}"
    arguments = command(
        "fit", "train", "leave_k_out",
        trainer__default_root_dir=ROOT / "leave_k_out" / method,
        model__init_args__method=method,
        data__init_args__exclude=exclude,
    )  # fmt: skip
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_attr.main", *arguments], env=one_thread, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"leave-k-out {method}: {done.stderr.strip().splitlines()[-1]}")
    return "finished already" not in done.stderr


def leave_k_out_all() -> None:
    """Retrain for every method, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        if not any(list(pool.map(leave_k_out, METHODS))):
            raise FinishedError("all methods are retrained already")


def summarise(seconds: dict[str, float]) -> dict[str, Any]:
    """Collect what the demo shows from the evaluation's metrics."""
    metrics = read_json(ROOT / "evaluate" / "metrics.json")["metrics"]

    def mean(key: str) -> float:
        if key not in metrics:
            raise UserError(f"{ROOT}/evaluate/metrics.json: found no {key}")
        return float(metrics[key]["mean"])

    recalls = {name: mean(f"{load_scores(ROOT / path).method}/recall_at_10") for name, path in RANKINGS.items()}
    changes = {method: f"{method}/k={REMOVED}/loss_change" for method in METHODS}
    return {
        "recall_at_10": recalls["top"],
        "recall_at_10_influence": recalls["influence"],
        "recall_at_10_similarity": recalls["similarity"],
        "recall_at_10_chance": 10 / len(Store(str(ROOT / "train.lmdb"))),
        "removed": REMOVED,
        "loss_change": {method: mean(key) for method, key in changes.items()},
        "loss_change_standard_error": {method: metrics[key]["standard_error"] for method, key in changes.items()},
        "seconds": seconds,
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print the table of the closing summary, and where to look."""
    table = Table(title="Which training images made these outputs?", title_justify="left")
    for column in ("ranked by", "recall@10 of planted", f"loss change without top {summary['removed']}"):
        table.add_column(column)
    recalls = {"top": "recall_at_10", "random": "recall_at_10_chance"}
    for method, words in METHODS.items():
        recall = summary[recalls.get(method, f"recall_at_10_{method}")]
        change, error = summary["loss_change"][method], summary["loss_change_standard_error"][method]
        table.add_row(words, f"{recall:.3f}", f"{change:+.4f} ± {error:.4f}")
    print_table(table)
    times = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())
    out.print(f"Seconds: {times}; in all {sum(summary['seconds'].values()):.0f}")
    out.print(f"Look: {ROOT}/report.html, and TensorBoard: tensorboard --logdir {ROOT}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo; there are no arguments but ``--help``."""
    ArgumentParser(
        prog="python -m tools.demo", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    ).parse_args(arguments)
    # On small networks a second thread gains a third, and costs a multiple where another process wants its core.
    torch.set_num_threads(1)
    ROOT.mkdir(parents=True, exist_ok=True)
    stages = Stages(ROOT / "seconds.json")
    stages("prepare", prepare)
    stages("train", lambda: cli("fit", "train"))
    stages("sample", lambda: cli("predict", "sample"))
    stages("curvature", lambda: cli("fit", "curvature"))
    stages("unlearn", unlearn)
    stages("curvature of influence", lambda: cli("fit", "curvature_ekfac"))
    stages("influence", lambda: cli("predict", "attribute", "../methods/default"))
    stages("similarity", lambda: cli("predict", "attribute", "../methods/similarity_latent"))
    stages("leave-k-out", leave_k_out_all)
    stages("evaluate", lambda: cli("test", "evaluate"))
    stages("report", lambda: report([str(ROOT)]))
    write_json(ROOT / "summary.json", summarise(stages.seconds))
    print_summary(read_json(ROOT / "summary.json"))


if __name__ == "__main__":
    run(main)
