"""What becomes of a run of attribution when the store grows eightfold: ``lightning-attr predict`` with ``topk``.

Both runs are processes of their own. What counts is the pass over the store and the scores that are made of it, with
all reading and writing; the start of the process and the gradients of the queries do not. Memory is what the pass takes
beyond what the process holds when it begins, without pages of the store, which the system drops when it needs to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import yaml
from lightning.pytorch.callbacks import Callback

from lightning_attr.artifacts import write_json
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from tools.benchmark.sweep import command
from tools.benchmark.timing import Figure, Sizes, Spread
from tools.benchmark.train import CONFIG

FACTOR = 8
QUERIES = 64
TOPK = 50
BATCH = 64
POLL = 0.01
"""Seconds between two looks at the memory."""

PASS = "pass.json"


class Pass(NamedTuple):
    """One pass over a store: its seconds, and the bytes that it takes at most."""

    seconds: float
    memory: float


class PassClock(Callback):
    """Measures the pass of a prediction, and writes it into the run's folder."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._begun = self._peak = 0
        self._ended = Event()
        self._watch = Thread(target=self._look, daemon=True)

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Begin to measure."""
        if self._start is None:
            self._start, self._begun = perf_counter(), _anonymous_bytes()
            self._watch.start()

    def on_predict_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop measuring: the scores are written."""
        assert self._start is not None
        taken = perf_counter() - self._start
        self._ended.set()
        self._watch.join()
        # A pass that fits in what the process has to spare takes at least a page.
        memory = max(self._peak - self._begun, 4096)
        write_json(Path(trainer.default_root_dir) / PASS, Pass(taken, memory)._asdict())

    def _look(self) -> None:
        while not self._ended.wait(POLL):
            self._peak = max(self._peak, _anonymous_bytes())


def _anonymous_bytes() -> int:
    """Return the bytes of this process's memory that are no pages of files."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure influence by the demo's network for 64 queries over a part of a store and over all of it."""
    counts = sizes.grown, FACTOR * sizes.grown
    store = folder / "store.lmdb"
    prepare_shapes(["--out", str(store), "--count", str(counts[1]), "--planted", "0"])
    inputs = _prepared(folder, store)
    passes = [
        [_attributed(folder / f"run-{repeat}-{count}", store, count / counts[1], inputs, sizes) for count in counts]
        for repeat in range(sizes.method_repeats)
    ]
    small, large = np.array(passes, float).transpose(1, 2, 0)
    between = f"{counts[0]} and {counts[1]} samples, {QUERIES} queries"
    yield Figure(
        "time_growth_8x", Spread.of((large[0] / small[0]).tolist()), f"8 is linear; {between}", 8.8, at_most=True
    )
    memory = Spread.of((large[1] / small[1]).tolist())
    yield Figure("topk_memory_growth_8x", memory, f"1 is no growth; {between}", 1.1, at_most=True)


def _prepared(folder: Path, store: Path) -> dict[str, str]:
    """Make what an attribution reads: a checkpoint that is hardly trained, its curvature, and queries."""
    checkpoint = folder / "train" / "checkpoints" / "last.ckpt"
    data = ["--data.init_args.store", str(store)]
    model = ["--model.init_args.checkpoint", str(checkpoint)]
    run_stage(
        [
            "fit",
            "-c", str(CONFIG),
            *data,
            "--trainer.default_root_dir", str(folder / "train"),
            "--trainer.max_steps", "1",
            "--trainer.limit_val_batches", "0",
            "--data.init_args.val_store", "null",
        ]
    )  # fmt: skip
    run_stage(
        [
            "fit",
            "-c", str(CONFIG.with_name("curvature.yaml")),
            *data,
            *model,
            "--data.init_args.subset.fraction", str(1 / FACTOR),
            "--trainer.default_root_dir", str(folder / "curvature"),
            "--trainer.max_epochs", "1",
        ]
    )  # fmt: skip
    prompts = ["a purple star"] * QUERIES
    run_stage(
        [
            "predict",
            "-c", str(CONFIG.with_name("sample.yaml")),
            *model,
            "--trainer.default_root_dir", str(folder / "sample"),
            "--model.init_args.store", str(store),
            "--model.init_args.prompt_store", "null",
            "--model.init_args.prompts", json.dumps(prompts),
            "--model.init_args.steps", "2",
        ]
    )  # fmt: skip
    curvature, queries = folder / "curvature" / "curvature.safetensors", folder / "sample" / "queries.lmdb"
    return {"checkpoint": str(checkpoint), "curvature": str(curvature), "queries": str(queries)}


def _attributed(run: Path, store: Path, share: float, inputs: dict[str, str], sizes: Sizes) -> Pass:
    """Run an attribution over a share of a store as a user does, and return how its pass went."""
    method = {"curvature": inputs["curvature"], "output": {"draws": {"timesteps": sizes.timesteps}}}
    config = {
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "callbacks": [{"class_path": f"{PassClock.__module__}.{PassClock.__name__}"}],
        },
        "model": {
            "class_path": "lightning_attr.tasks.Attribution",
            "init_args": {
                "method": {"class_path": "lightning_attr.methods.Influence", "init_args": method},
                "queries": inputs["queries"],
                "checkpoints": [inputs["checkpoint"]],
                "topk": min(TOPK, sizes.grown),
            },
        },
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(store), "batch_size": BATCH, "subset": {"fraction": share}},
        },
    }
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    command("-m", "lightning_attr.main", "predict", "-c", str(path), environment=os.environ)
    return Pass(**json.loads((run / PASS).read_text()))
