"""Retraining many models: ``lightning-attr sweep`` against one ``lightning-attr fit`` after the other, as a shell loop.

Both sides train the demo's network on the same entries, as long as the demo trains, and measure what became of the
queries. Each side counts from its first command to the end of its last, the start of processes included: that is what
is waited for. The loop leaves the number of torch's threads at its default; the sweep runs one thread in each of two
workers. A second figure is the gain of training together alone, where it is to be expected: at a small batch.

Shapes: G models of a group, B samples.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.commands.sweep.plan import Random, Sweep, entries, merged
from lightning_attr.models import Inputs
from lightning_attr.noise import Draws
from lightning_attr.tasks import GroupedRetraining, Retraining
from lightning_attr.tasks.grouped import clip_each_norm
from tools.benchmark.timing import Figure, Sizes, Spread, Timed, ratio, seconds
from tools.benchmark.train import CONFIG

ROOT = CONFIG.parents[2]
BATCH = 8
GROUP = 8
STEPS = 8
REMOVED = 16
QUERIES = 4
TIMESTEPS = 50


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure a small sweep as a whole, and the steps of a group."""
    yield Figure(
        "grouped_vs_separate",
        _sweep_ratio(folder, sizes),
        f"cores: two workers with one thread each, against one process with {torch.get_num_threads()} threads",
        2.0,
    )
    yield Figure(
        "grouped_vs_alone_batch8",
        _group_ratio(sizes),
        f"convolutions, which go from model to model; per model, {GROUP} together against one",
    )


def _sweep_ratio(folder: Path, sizes: Sizes) -> Spread:
    """Return models per hour of the sweep over those of the loop. Minutes on either side, so each is measured once."""
    sweep = _prepared(folder, sizes)
    config = folder / "sweep.yaml"
    random = {"k": [REMOVED], "count": sizes.retrained}
    given: dict[str, Any] = {
        "folder": sweep.folder,
        "train": sweep.train,
        "original": sweep.original,
        "queries": sweep.queries,
    }
    given |= {"evaluation": {"timesteps": TIMESTEPS}, "random": random}
    config.write_text(yaml.safe_dump({"sweep": given}))
    loop = seconds(lambda: _loop(folder, sweep))()
    swept = seconds(lambda: command("-m", "lightning_attr.main", "sweep", "-c", str(config)))()
    return Spread.of([loop / swept])


def _prepared(folder: Path, sizes: Sizes) -> Sweep:
    """Prepare a sweep of random removals; its original is hardly trained, which makes the others no cheaper."""
    store, training = folder / "train.lmdb", folder / "training.yaml"
    prepare_shapes(["--out", str(store), "--count", str(sizes.trained), "--planted", "0"])
    data = {"init_args": {"store": str(store), "val_store": None}}
    trainer = {"max_steps": sizes.steps} if sizes.steps else {}
    training.write_text(yaml.safe_dump({"trainer": trainer, "data": data}))
    original, queries = folder / "original", folder / "queries"
    train = ["-c", str(CONFIG), "-c", str(training)]
    run_stage(["fit", *train, "--trainer.max_steps", "1", "--trainer.default_root_dir", str(original)])
    checkpoint = original / "checkpoints" / "last.ckpt"
    run_stage(
        [
            "predict",
            "-c", str(CONFIG.with_name("sample.yaml")),
            "--trainer.default_root_dir", str(queries),
            "--model.init_args.checkpoint", str(checkpoint),
            "--model.init_args.store", str(store),
            "--model.init_args.prompt_store", str(store),
            "--model.init_args.count", str(QUERIES),
        ]
    )  # fmt: skip
    return Sweep(
        folder=str(folder / "sweep"),
        train=[str(CONFIG), str(training)],
        original=str(checkpoint),
        queries=str(queries / "queries.lmdb"),
        evaluation=Draws(timesteps=TIMESTEPS),
        random=Random([REMOVED], sizes.retrained),
    )


def _loop(folder: Path, sweep: Sweep) -> None:
    """Run the entries of a sweep as commands of their own, one after the other."""
    for index, entry in enumerate(entries(sweep)):
        path = folder / f"entry-{index}.yaml"
        root = {"trainer": {"default_root_dir": str(folder / f"entry-{index}")}}
        path.write_text(yaml.safe_dump(merged(entry.settings, root)))
        configs = (word for config in (*sweep.train, str(path)) for word in ("-c", config))
        command("-m", "lightning_attr.main", "fit", *configs)


def command(*words: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command as a user's shell would: with torch's default threads, where no environment says otherwise."""
    environment = environment or {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}")


def _group_ratio(sizes: Sizes) -> Spread:
    """Return the seconds of a step of one model over those of a group, divided by its size."""
    config = yaml.safe_load(CONFIG.read_text())
    model = {name: config["model"]["init_args"][name] for name in ("denoiser", "scheduler", "learning_rate")}
    clip = config["trainer"]["gradient_clip_val"]
    members = [Retraining("", "", seed=seed, **model) for seed in range(GROUP)]
    alone = Retraining("", "", **model)
    group = GroupedRetraining(members, [str(seed) for seed in range(GROUP)])
    inputs = _inputs(model["denoiser"])

    def own_loss() -> Tensor:
        latent, conditions, timesteps, noise = inputs
        own = {name: value[0] for name, value in conditions.items()}
        return alone.model.losses(latent[0], own, timesteps[0], noise[0]).mean()

    def clip_own() -> None:
        clip_grad_norm_(alone.parameters(), clip)

    def clip_all() -> None:
        clip_each_norm([weight.grad for weight in group.parameters() if weight.grad is not None], clip)

    one = _steps(alone, own_loss, clip_own)
    all_together = _steps(group, lambda: group.losses(inputs).mean(1).sum(), clip_all)
    return ratio(lambda: all_together() / GROUP, one, sizes.repeats)


def _inputs(denoiser: dict[str, Any]) -> Inputs:
    """Return what the losses of a step are measured on, [G, B, ...]."""
    latent = torch.randn(GROUP, BATCH, denoiser["in_channels"], denoiser["sample_size"], denoiser["sample_size"])
    text = torch.randn(GROUP, BATCH, 16, denoiser["cross_attention_dim"])
    return Inputs(latent, {"text": text}, torch.randint(1000, (GROUP, BATCH)), torch.randn_like(latent))


def _steps(task: torch.nn.Module, loss: Callable[[], Tensor], clip: Callable[[], None]) -> Timed:
    """Return the timing of so many training steps with the optimizer of the task."""
    optimizer = torch.optim.AdamW(task.parameters(), fused=True)

    def run() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            clip()
            optimizer.step()

    return seconds(run)
