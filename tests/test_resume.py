"""A run that was stopped at any moment and started again ends in the same bits as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import snapshot
from miniature import Project
from stopped import Ended, Moment, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, read_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import main
from lightning_attr.digests import file_digest

TASKS = "lightning_attr.tasks:"
STOPPED = "stopped and saved"


def flat(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of nested mappings and lists, by name."""
    if isinstance(value, Tensor):
        return {prefix: value}
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: tensor for key, child in children for name, tensor in flat(child, f"{prefix}/{key}").items()}


def tensors(path: Path) -> dict[str, Tensor]:
    """All that a run's file says in numbers; of a checkpoint: weights, averages, moments of the optimizer."""
    if path.name == "scores.safetensors":
        scores = Scores.load(path)
        return {"scores": scores.scores, "query_id": scores.query_id, "sample_id": scores.sample_id}
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    checkpoint = torch.load(path, weights_only=True)
    return flat({key: checkpoint.get(key) for key in ("state_dict", "current_model_state", "optimizer_states")})


def assert_same(found: Path, expected: Path) -> None:
    """Compare two files bit by bit, and the digests by which others know checkpoints."""
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 0
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    if found.suffix == ".ckpt":
        assert file_digest(found) == file_digest(expected)


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Points of a TensorBoard curve, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), purge_orphaned_data=True).Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def stopped_then_resumed(args: list[str], log: Path, moment: Moment) -> Ended:
    """Stop a run at a moment, start it again, and check how both ended."""
    stopped = run(args, log, moment)
    if moment.sends == signal.SIGKILL:
        assert stopped.status == -signal.SIGKILL, stopped
    else:
        assert stopped.status == 128 + moment.sends, stopped
        assert STOPPED in stopped.stderr
    assert "Traceback" not in stopped.stderr
    resumed = run(args, log)
    assert resumed.status == 0, resumed
    return stopped


def moments(table: dict[str, tuple[str, int]]) -> list[Any]:
    """Every moment with SIGKILL and SIGTERM."""
    signals = (signal.SIGKILL, signal.SIGTERM)
    return [pytest.param(moment, sends, id=f"{sends.name}-{moment}") for moment in table for sends in signals]


TRAINING_MOMENTS = {
    "before the first checkpoint": (f"{TASKS}LatentDiffusion.training_step", 2),
    "in the middle of an epoch": (f"{TASKS}LatentDiffusion.training_step", 4),
    "in the first step of an epoch": (f"{TASKS}LatentDiffusion.training_step", 6),
    "in the last step of an epoch": (f"{TASKS}LatentDiffusion.training_step", 10),
    "before the optimizer steps": ("torch.optim:AdamW.step", 8),
    "while a checkpoint is written": ("torch:save", 3),
    "before a checkpoint has its name": ("os:replace", 6),
    "in the first validation": (f"{TASKS}LatentDiffusion.validation_step", 2),
    "at the end of a validation": ("callbacks:EMA.on_validation_epoch_end", 2),
    "in the last validation": (f"{TASKS}LatentDiffusion.validation_step", 8),
}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "sends"), moments(TRAINING_MOMENTS))
def test_training(project: Project, tmp_path: Path, moment: str, sends: signal.Signals) -> None:
    args = project.args("train", tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", Moment(*TRAINING_MOMENTS[moment], sends))
    assert_same(tmp_path / "run/checkpoints/last.ckpt", project.checkpoint)
    train, val = (curve(tmp_path / "run", tag) for tag in ("train/loss", "val/loss"))
    assert len(dict(train)) == len(train)
    assert set(train) <= set(curve(project.root / "train", "train/loss"))
    assert len(train) >= 11  # the point of the batch that a checkpoint was made in is not logged again
    # A validation is repeated where it was cut off. Only the very last one has nothing to resume.
    expected = curve(project.root / "train", "val/loss")
    assert set(val) == set(expected[:2] if moment == "in the last validation" else expected)


@pytest.mark.slow
def test_training_stopped_twice(project: Project, tmp_path: Path) -> None:
    args = project.args("train", tmp_path / "run")
    for call, sends in [(5, signal.SIGKILL), (4, signal.SIGTERM), (3, signal.SIGKILL)]:
        run(args, tmp_path / "log", Moment(f"{TASKS}LatentDiffusion.training_step", call, sends))
    assert run(args, tmp_path / "log").status == 0
    assert_same(tmp_path / "run/checkpoints/last.ckpt", project.checkpoint)


@pytest.mark.slow
def test_training_stopped_at_the_end_of_two_epochs(project: Project, tmp_path: Path) -> None:
    """The second time where a validation is due, and there is nothing to validate: it cost an epoch once."""
    settings = {"trainer__max_steps": 22, "data__init_args__val_store": "null"}
    assert run(project.args("train", tmp_path / "straight", **settings), tmp_path / "log").status == 0
    args = project.args("train", tmp_path / "run", **settings)
    for call in (15, 5):
        assert (
            run(args, tmp_path / "log", Moment(f"{TASKS}LatentDiffusion.training_step", call, signal.SIGTERM)).status
            == 143
        )
    assert run(args, tmp_path / "log").status == 0
    assert_same(tmp_path / "run/checkpoints/last.ckpt", tmp_path / "straight/checkpoints/last.ckpt")
    points = [curve(tmp_path / name, "epoch")[-1] for name in ("run", "straight")]
    assert points == [(21, 4.0)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("sends", [signal.SIGKILL, signal.SIGTERM], ids=lambda sends: sends.name)
def test_training_with_accumulated_gradients(project: Project, tmp_path: Path, sends: signal.Signals) -> None:
    settings = {"trainer__accumulate_grad_batches": 3, "trainer__max_steps": 5, "trainer__val_check_interval": 1000}
    straight = project.args("train", tmp_path / "straight", **settings)
    assert run(straight, tmp_path / "log").status == 0
    args = project.args("train", tmp_path / "run", **settings)
    stopped_then_resumed(args, tmp_path / "log", Moment(f"{TASKS}LatentDiffusion.training_step", 8, sends))
    assert_same(tmp_path / "run/checkpoints/last.ckpt", tmp_path / "straight/checkpoints/last.ckpt")


CURVATURE_MOMENTS = {
    "in the middle of an epoch": (f"{TASKS}Curvature.training_step", 4),
    "in the first step of an epoch": (f"{TASKS}Curvature.training_step", 6),
    "in the last step": (f"{TASKS}Curvature.training_step", 10),
    "before the result is written": (f"{TASKS}Curvature.on_fit_end", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "sends"), moments(CURVATURE_MOMENTS))
def test_curvature(project: Project, tmp_path: Path, moment: str, sends: signal.Signals) -> None:
    args = project.args("curvature", tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", Moment(*CURVATURE_MOMENTS[moment], sends))
    assert_same(tmp_path / "run/curvature.safetensors", project.curvature)
    assert load_tensors(tmp_path / "run/curvature.safetensors")[1]["draws"] == 80


UNLEARNING_MOMENTS = {
    "in the middle of the first step": (f"{TASKS}Unlearning.training_step", 3),
    "in the middle of the second step": (f"{TASKS}Unlearning.training_step", 5),
    "in the last micro-batch of a step": (f"{TASKS}Unlearning.training_step", 6),
    "in the last step": (f"{TASKS}Unlearning.training_step", 9),
    "before the weights are written": (f"{TASKS}Unlearning.on_fit_end", 1),
    "in the sweep before unlearning": ("lightning_attr.loss_sweep:sample_losses", 10),
    "between two parts": ("lightning_attr.loss_sweep:save_tensors", 2),
    "before the parts are joined": ("lightning_attr.loss_sweep:LossSweep.join", 1),
    "in the sweep after unlearning": ("lightning_attr.loss_sweep:sample_losses", 35),
    "before the scores are written": ("lightning_attr.artifacts.scores:Scores.save", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "sends"), moments(UNLEARNING_MOMENTS))
def test_unlearning_and_its_loss_sweeps(project: Project, tmp_path: Path, moment: str, sends: signal.Signals) -> None:
    args = project.args("unlearn", tmp_path / "run", trainer__callbacks=project.recorder(tmp_path / "base.safetensors"))
    stopped_then_resumed(args, tmp_path / "log", Moment(*UNLEARNING_MOMENTS[moment], sends))
    for name in ("weights", "losses", "scores"):
        assert_same(tmp_path / f"run/{name}.safetensors", project.root / f"unlearn/{name}.safetensors")
    assert_same(tmp_path / "base.safetensors", project.root / "base_losses.safetensors")
    assert set(curve(tmp_path / "run", "unlearn/query_loss")) <= set(
        curve(project.root / "unlearn", "unlearn/query_loss")
    )


@pytest.mark.slow
def test_a_resumed_sweep_keeps_its_finished_chunks(project: Project, tmp_path: Path) -> None:
    args = project.args("unlearn", tmp_path / "run", trainer__callbacks=project.recorder(tmp_path / "base.safetensors"))
    run(args, tmp_path / "log", Moment("lightning_attr.loss_sweep:sample_losses", 10))
    chunks = {path: path.stat().st_mtime_ns for path in (tmp_path / "base.safetensors.chunks").iterdir()}
    assert len(chunks) == 1
    run(args, tmp_path / "log", Moment("lightning_attr.loss_sweep:LossSweep.join", 1))
    assert len(list((tmp_path / "base.safetensors.chunks").iterdir())) == 3
    assert all(path.stat().st_mtime_ns == written for path, written in chunks.items())


SAMPLING_MOMENTS = {
    "in the first batch": (f"{TASKS}Sampler.predict_step", 1),
    "between two batches": (f"{TASKS}Sampler.predict_step", 2),
    "in the last batch": (f"{TASKS}Sampler.predict_step", 3),
    "in the middle of a batch's samples": ("datamodules.store.writer:StoreWriter.write", 4),
    "before the store has its name": ("datamodules.store.writer:StoreWriter.finish", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "sends"), moments(SAMPLING_MOMENTS))
def test_sampling(project: Project, tmp_path: Path, moment: str, sends: signal.Signals) -> None:
    args = project.args("sample", tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", Moment(*SAMPLING_MOMENTS[moment], sends))
    assert Store(str(tmp_path / "run/queries.lmdb")).digest == Store(str(project.queries)).digest


@pytest.mark.slow
def test_sampling_killed_when_only_the_mark_of_the_run_is_missing(project: Project, tmp_path: Path) -> None:
    args = project.args("sample", tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", Moment("lightning_attr.runs.folder:RunFolder.finish", 1))
    assert Store(str(tmp_path / "run/queries.lmdb")).digest == Store(str(project.queries)).digest
    assert "finished already" in run(args, tmp_path / "log").stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", [(f"{TASKS}LatentDiffusion.training_step", 7), (f"{TASKS}Retraining.on_fit_end", 1)])
def test_leave_k_out(project: Project, tmp_path: Path, moment: tuple[str, int]) -> None:
    args = project.args("leave_k_out", tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", Moment(*moment))
    assert_same(tmp_path / "run/checkpoints/last.ckpt", project.root / "leave_k_out/checkpoints/last.ckpt")
    assert_same(tmp_path / "run/retraining.safetensors", project.root / "leave_k_out/retraining.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["similarity", "evaluate"])
@pytest.mark.parametrize("sends", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda sends: sends.name)
def test_short_stages_start_over(project: Project, tmp_path: Path, stage: str, sends: signal.Signals) -> None:
    step, result = {
        "similarity": ("Attribution.predict_step", "scores.safetensors"),
        "evaluate": ("Evaluation.test_step", "metrics.json"),
    }[stage]
    args = project.args(stage, tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", Moment(f"{TASKS}{step}", 2, sends))
    if stage == "similarity":
        assert_same(tmp_path / "run" / result, project.root / stage / result)
    else:
        assert read_json(tmp_path / "run" / result) == read_json(project.root / stage / result)


@pytest.mark.parametrize("stage", ["train", "sample", "curvature", "unlearn", "similarity", "leave_k_out", "evaluate"])
def test_a_finished_run_is_left_alone(project: Project, capfd: pytest.CaptureFixture[str], stage: str) -> None:
    before = snapshot(project.root)
    main(project.args(stage))
    assert "finished already" in capfd.readouterr().err
    assert snapshot(project.root) == before


@pytest.mark.slow
def test_a_finished_run_goes_on_with_a_higher_limit(project: Project, tmp_path: Path) -> None:
    assert run(project.args("train", tmp_path / "run", trainer__max_steps=7), tmp_path / "log").status == 0
    assert run(project.args("train", tmp_path / "run"), tmp_path / "log").status == 0
    assert_same(tmp_path / "run/checkpoints/last.ckpt", project.checkpoint)


@pytest.mark.slow
def test_the_installed_command_killed_from_outside(project: Project, tmp_path: Path) -> None:
    """No moment is chosen: the kill comes from outside, whenever a checkpoint has just appeared."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    settings = {"trainer__max_steps": 150, "trainer__val_check_interval": 50, "checkpoint__every_n_train_steps": 10}
    command = [str(Path(sys.executable).with_name("lightning-attr"))]
    subprocess.run([*command, *project.args("train", straight, **settings)], check=True)
    last = killed / "checkpoints/last.ckpt"
    for _ in range(3):
        seen = last.stat().st_mtime_ns if last.exists() else 0
        process = subprocess.Popen([*command, *project.args("train", killed, **settings)])
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns > seen):
            time.sleep(0.002)
        time.sleep(0.2)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, *project.args("train", killed, **settings)], check=True)
    assert_same(last, straight / "checkpoints/last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("sends", [signal.SIGTERM, signal.SIGINT], ids=lambda sends: sends.name)
def test_the_installed_command_stopped_from_outside(project: Project, tmp_path: Path, sends: signal.Signals) -> None:
    command = [str(Path(sys.executable).with_name("lightning-attr"))]
    args = project.args("train", tmp_path / "run", trainer__max_steps=100_000)
    process = subprocess.Popen([*command, *args], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run/checkpoints/last.ckpt").exists():
        time.sleep(0.01)
    process.send_signal(sends)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + sends, stderr
    assert STOPPED in stderr
    assert "Traceback" not in stderr


def test_a_second_ctrl_c_stops_at_once(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step goes on")

    monkeypatch.setattr("lightning_attr.tasks.LatentDiffusion.training_step", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(project.args("train", tmp_path / "run"))
    assert ended.value.code == 130
    printed = capfd.readouterr().err
    assert "interrupted; the same command goes on from the last checkpoint" in printed
    assert "Traceback" not in printed
