"""All stages on drawings: customise the base model, draw, ask, customise again without the answer, report.

    python -m tools.demo

Writes ``runs/demo/`` with ``answer.png``, ``report.html`` and ``summary.json``. Started again after a stop, it goes on.

The base model of the drawings is tuned on 64 of them, 8 by an artist whom it does not know, and draws other things in
that hand. The right answer is known: the artist's drawings. One retraining per method removes the top of all queries'
rankings, taken in turn, so that the demo stays short; those that wait for no ranking run beside the other stages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from rich.table import Table

from datamodules.grouping import read_groups
from datamodules.store import Store
from lightning_attr.artifacts import read_json, write_json
from lightning_attr.artifacts.scores import Scores, TopScores, load_scores
from lightning_attr.cli import FinishedError, run_stage
from lightning_attr.commands.prepare.drawings import main as prepare_drawings
from lightning_attr.commands.report.command import main as report
from lightning_attr.console import err, out, print_table, run
from lightning_attr.contributors import contributors
from lightning_attr.errors import UserError

ROOT = Path("runs/demo")
CONFIGS = Path("configs/demo")
PLANTED = 8
"""Drawings by the new artist, and how many are removed in a retraining."""
STORE = [
    "--count", "64", "--planted", str(PLANTED), "--rare", "artist", "--seed", "5",
    "--encoders_from", "benchmarks/base/drawings.lmdb",
]  # fmt: skip
ARTIST = "rilin"
RANKINGS = {"influence": "adapter", "similarity": "similarity_latent"}
"""The configs of the methods whose top is removed in a retraining, by the name of the retraining."""
METHODS = {
    "artist": f"{ARTIST}'s own",
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
    """Make the store, once."""
    if (ROOT / "train.lmdb").exists():
        raise FinishedError(f"{ROOT}/train.lmdb: finished already")
    prepare_drawings(["--out", str(ROOT / "train.lmdb"), *STORE])


def scores_of(method: str) -> Path:
    """Return the file of a method's scores."""
    return ROOT / "attribute" / RANKINGS[method] / "scores.safetensors"


def leave_k_out(method: str) -> bool:
    """Customise again without what ``method`` ranks highest; return whether there was anything to do."""
    exclude = {
        "artist": f"{{scores: null, top: null, grouping: artist, group: {ARTIST}}}",
        "random": f"{{scores: null, top: null, random: {PLANTED}}}",
    }.get(method) or f"{{scores: {scores_of(method)}, top: {PLANTED}}}"
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


def wait_for(retrainings: Sequence[Future[bool]]) -> None:
    """Wait until all are retrained."""
    if not any(list(map(Future.result, retrainings))):
        raise FinishedError("all methods are retrained already")


def summarise(seconds: dict[str, float]) -> dict[str, Any]:
    """Collect what the demo shows from the evaluation's metrics."""
    metrics = read_json(ROOT / "evaluate" / "metrics.json")["metrics"]

    def found(key: str) -> dict[str, float]:
        if key not in metrics:
            raise UserError(f"{ROOT}/evaluate/metrics.json: found no {key}")
        return {name: float(metrics[key][name]) for name in ("mean", "standard_error")}

    recalls = {name: found(f"{load_scores(scores_of(name)).method}/recall_at_{PLANTED}")["mean"] for name in RANKINGS}
    names = {method: method for method in METHODS} | {"artist": f"artist {ARTIST}"}
    with Store(str(ROOT / "train.lmdb")) as store:
        chance = PLANTED / len(store)
        first = {name: _first_artist(store, load_scores(scores_of(name))) for name in RANKINGS}
    return {
        "first_artist": {"artist": ARTIST, **first, "random": ""},
        "recall": {"artist": 1.0, **recalls, "random": chance},
        "removed": PLANTED,
        "loss_change": {method: found(f"{name}/k={PLANTED}/loss_change") for method, name in names.items()},
        "seconds": seconds,
    }


def _first_artist(store: Store, scores: Scores | TopScores) -> str:
    """Return the artist whose drawings have the highest score together."""
    assert isinstance(scores, Scores)  # the demo ranks all of them
    return contributors(read_groups(store, "artist", scores.sample_id.numpy()), scores)[0].group


def print_summary(summary: dict[str, Any]) -> None:
    """Print the table of the closing summary, and where to look."""
    table = Table(title="Which training images made these outputs?", title_justify="left")
    removed = summary["removed"]
    for column in ("ranked by", "first artist", f"{ARTIST}'s of {removed}", f"loss change without these {removed}"):
        table.add_column(column)
    for method, words in METHODS.items():
        change = summary["loss_change"][method]
        share = f"{summary['recall'][method] * removed:.1f}"
        loss = f"{change['mean']:+.4f} ± {change['standard_error']:.4f}"
        table.add_row(words, summary["first_artist"][method], share, loss)
    print_table(table)
    times = ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items())
    out.print(f"Seconds: {times}; in all {sum(summary['seconds'].values()):.0f}")
    out.print(f"Look: {ROOT}/answer.png, {ROOT}/report.html, and TensorBoard: tensorboard --logdir {ROOT}")


def draw_answer(path: Path, shown: int = 6) -> None:
    """Draw every query beside the drawings that the methods rank first; those of the artist have a frame."""
    store, queries = Store(str(ROOT / "train.lmdb")), Store(str(ROOT / "sample/queries.lmdb"))
    ranked = {name: load_scores(scores_of(name)) for name in RANKINGS}
    gap = 0.35
    width = [1, gap, *[1] * shown, gap, *[1] * shown]
    figure = Figure(figsize=(sum(width), 1.08 * len(queries)), dpi=100)
    axes = figure.subplots(len(queries), len(width), width_ratios=width, squeeze=False)
    first = dict(zip(ranked, (2, 3 + shown), strict=True))
    for row, query in zip(axes, queries.ids.tolist(), strict=True):
        for cell in row:
            cell.axis("off")
        _show(row[0], queries, query, framed=False)
        for name, scores in ranked.items():
            for cell, (sample, _) in zip(row[first[name] :], scores.ranked(query, shown), strict=False):
                artist = store.meta(int(store.positions([sample])[0])).attributes["artist"]
                _show(cell, store, sample, framed=artist == ARTIST)
    for column, title in [(0, "made"), *((first[name], METHODS[name]) for name in ranked)]:
        axes[0, column].set_title(title, fontsize=9, loc="left")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.93, wspace=0.06, hspace=0.06)
    figure.savefig(path)


def _show(cell: Axes, store: Store, sample: int, framed: bool) -> None:
    cell.imshow(Image.open(BytesIO(store.thumb(int(store.positions([sample])[0])))))
    if framed:
        cell.add_patch(Rectangle((0, 0), 1, 1, transform=cell.transAxes, fill=False, color="tab:red", linewidth=4))


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
    stages("customise", lambda: cli("fit", "train"))
    stages("draw", lambda: cli("predict", "sample"))
    with ThreadPoolExecutor(2) as pool:
        retrainings = [pool.submit(leave_k_out, method) for method in METHODS if method not in RANKINGS]
        stages("curvature", lambda: cli("fit", "curvature_ekfac"))
        first = {"model__init_args__method__init_args__captions": 1}  # the first names everything that is in a drawing
        stages("influence", lambda: cli("predict", "attribute", "../methods/adapter", **first))
        stages("similarity", lambda: cli("predict", "attribute", "../methods/similarity_latent"))
        retrainings += [pool.submit(leave_k_out, method) for method in RANKINGS]
        stages("leave-k-out", lambda: wait_for(retrainings))
    stages("evaluate", lambda: cli("test", "evaluate"))
    draw_answer(ROOT / "answer.png")
    stages("report", lambda: report([str(ROOT), "--grouping", "artist"]))
    write_json(ROOT / "summary.json", summarise(stages.seconds))
    print_summary(read_json(ROOT / "summary.json"))


if __name__ == "__main__":
    run(main)
