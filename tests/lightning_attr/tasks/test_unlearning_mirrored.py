"""MUCS: training goes on while the query's loss is driven up, bounded, and resumed exactly."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import Refused, assert_says
from miniature import Project
from stopped import Moment
from test_ddp import assert_close, finish
from test_resume import TASKS, assert_same, curve, stopped_then_resumed

from lightning_attr.artifacts import load_tensors
from lightning_attr.cli import run_stage
from lightning_attr.noise import Draws
from lightning_attr.tasks import MirroredUnlearning
from lightning_attr.tasks.changed_weights import ChangedWeights
from lightning_attr.tasks.mirrored_unlearning import mirrored_loss

STEP = f"{TASKS}MirroredUnlearning.training_step"


def mirrored(project: Project, run: Path, **settings: Any) -> list[str]:
    """A short unlearning; the miniature network knows little, so its loss is near the null loss from the start."""
    config = {
        "trainer": {"default_root_dir": str(run), "accelerator": "cpu", "max_steps": 100},
        "checkpoint": {"every_n_train_steps": 1},
        "model": {
            "class_path": "lightning_attr.tasks.MirroredUnlearning",
            "init_args": {
                "checkpoint": str(project.checkpoint),
                "queries": str(project.queries),
                "query": 0,
                "learning_rate": 3e-3,
                "forget": 2.0,
                "until": None,
                "query_draws": 4,
                "draws": {"timesteps": 4},
            },
        },
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(project.store), "batch_size": 8},
        },
    }
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.with_name(f"{run.name}.yaml")
    path.write_text(yaml.safe_dump(config))
    options = [word for key, value in settings.items() for word in (f"--{key.replace('__', '.')}", str(value))]
    return ["fit", "-c", str(path), *options]


def share(task: MirroredUnlearning) -> float:
    """Share of the null loss that query 0's loss is."""
    ChangedWeights.setup(task, "fit")
    return task.forgotten()


@pytest.fixture(scope="module")
def until(project: Project) -> float:
    """A bound a little above where the query starts."""
    task = MirroredUnlearning(str(project.checkpoint), str(project.queries), 0, draws=Draws(timesteps=4))
    return share(task) + 0.05


@pytest.fixture(scope="module")
def forgotten(project: Project, until: float) -> Path:
    run_stage(mirrored(project, project.root / "mirrored", model__init_args__until=until))
    return project.root / "mirrored"


def test_it_stops_when_the_query_is_forgotten(project: Project, forgotten: Path, until: float) -> None:
    weights, settings = load_tensors(forgotten / "weights.safetensors")
    assert 1 <= settings["steps"] < 100
    assert settings["query"] == 0
    assert (settings["samples"]["count"], settings["data_seed"]) == (40, 0)
    task = MirroredUnlearning(str(project.checkpoint), str(project.queries), 0, draws=Draws(timesteps=4))
    task.denoiser.load_state_dict(weights)
    assert share(task) >= until - 1e-6
    before = [value for _, value in curve(forgotten, "unlearn/share_of_null_loss")]
    assert len(before) >= settings["steps"]
    assert all(value < until for value in before[: settings["steps"]])


@pytest.mark.slow
@pytest.mark.parametrize(("call", "sends"), [(2, signal.SIGKILL), (1, signal.SIGTERM)])
def test_resumed(project: Project, forgotten: Path, until: float, tmp_path: Path, call: int, sends: Any) -> None:
    args = mirrored(project, tmp_path / "run", model__init_args__until=until)
    stopped_then_resumed(args, tmp_path / "log", Moment(STEP, call, sends))
    assert_same(tmp_path / "run/weights.safetensors", forgotten / "weights.safetensors")


@pytest.mark.slow
def test_killed_after_the_last_step(project: Project, forgotten: Path, until: float, tmp_path: Path) -> None:
    args = mirrored(project, tmp_path / "run", model__init_args__until=until)
    stopped_then_resumed(args, tmp_path / "log", Moment(f"{TASKS}MirroredUnlearning.on_fit_end", 1))
    assert_same(tmp_path / "run/weights.safetensors", forgotten / "weights.safetensors")


@pytest.mark.slow
def test_two_ranks(project: Project, tmp_path: Path) -> None:
    run_stage(mirrored(project, tmp_path / "one", trainer__max_steps=2))
    finish(mirrored(project, tmp_path / "two", trainer__max_steps=2, data__init_args__batch_size=4), tmp_path / "log")
    assert_close(tmp_path / "two/weights.safetensors", tmp_path / "one/weights.safetensors", tolerance=1e-3)


def test_the_null_loss_bounds_the_ascent() -> None:
    null = torch.tensor(1.0)
    for query, pull in [(0.5, -0.2), (1.5, 0.0)]:
        loss = torch.tensor(query, requires_grad=True)
        mirrored_loss(torch.tensor(3.0), loss, null, 0.2).backward()
        assert loss.grad == pytest.approx(pull)


def test_the_null_loss_is_that_of_predicting_nothing(project: Project) -> None:
    task = MirroredUnlearning(str(project.checkpoint), str(project.queries), 0)
    for weight in task.selected.values():
        torch.nn.init.zeros_(weight)
    assert share(task) == pytest.approx(1)


def test_only_the_chosen_weights_change(project: Project, tmp_path: Path) -> None:
    run_stage(mirrored(project, tmp_path / "run", trainer__max_steps=1, model__init_args__weights="cross_kv"))
    changed = load_tensors(tmp_path / "run/weights.safetensors")[0]
    original = torch.load(project.checkpoint, weights_only=True)["state_dict"]
    assert all("attn2.to_" in name for name in changed)
    assert all(not torch.equal(value, original[f"denoiser.{name}"]) for name, value in changed.items())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"model__init_args__until": 0.1}, ["query 0", "before any step", "model.until, 0.1"]),
        ({"model__init_args__until": 50.0, "trainer__max_steps": 2}, ["after 2 steps", "raise trainer.max_steps"]),
        ({"model__init_args__query": 99}, ["queries.lmdb", "99"]),
    ],
)
def test_refused(
    project: Project, refused: Refused, tmp_path: Path, settings: dict[str, object], parts: list[str]
) -> None:
    assert_says(refused(mirrored(project, tmp_path / "run", **settings)), *parts)
