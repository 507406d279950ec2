"""Two ranks compute what one computes, stop together, go on exactly, and leave nobody waiting."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from damage import flipped, snapshot
from miniature import Project
from stopped import Ended, Moment
from test_resume import STOPPED, TASKS, assert_same, curve, tensors
from two_ranks import command, run_both

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, read_json
from lightning_attr.cli import main, run_stage
from lightning_attr.commands.prepare.shapes import main as prepare_shapes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose samples two ranks cannot divide evenly, trained on one."""
    root = tmp_path_factory.mktemp("uneven")
    sizes = ["--count", "39", "--val_count", "21", "--planted", "4", "--tokens", "6", "--dim", "16"]
    prepare_shapes(["--out", str(root / "train.lmdb"), "--val", str(root / "val.lmdb"), *sizes])
    project = Project(root)
    run_stage(project.args("train"))
    return project


@pytest.fixture(scope="session")
def curved(uneven: Project) -> Project:
    """The same with its curvature, from one rank."""
    run_stage(uneven.args("curvature"))
    return uneven


@pytest.fixture(scope="session")
def chain(curved: Project) -> Project:
    """The same with every stage up to the scores run on one rank."""
    for stage in ("sample", "unlearn", "similarity"):
        run_stage(curved.args(stage))
    return curved


@pytest.fixture(scope="session")
def both(uneven: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on two ranks, each with half of the batch."""
    root = tmp_path_factory.mktemp("both")
    finish(training(uneven, root / "train"), root / "log")
    return root / "train"


def training(project: Project, run: Path, **settings: object) -> list[str]:
    return project.args("train", run, data__init_args__batch_size=4, **settings)


def unlearning(project: Project, run: Path) -> list[str]:
    return project.args("unlearn", run, trainer__callbacks=project.recorder(run.with_name("base.safetensors")))


def finish(args: list[str], log: Path) -> list[Ended]:
    ended = run_both(args, log)
    assert [rank.status for rank in ended] == [0, 0], ended
    assert ended[1].stderr == ""  # rank 0 speaks for both
    return ended


def assert_close(found: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Compare two files within a tolerance, relative to the largest value of each tensor."""
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        difference = (ours[name].double() - tensor.double()).abs().max()
        assert difference <= tolerance * tensor.double().abs().max(), name


def test_training_takes_the_steps_of_one_rank_with_twice_the_batch(uneven: Project, both: Path) -> None:
    assert_close(both / "checkpoints/last.ckpt", uneven.checkpoint, tolerance=1e-4)  # Adam magnifies rounding errors
    for tag in ("train/loss", "val/loss"):
        ours, theirs = curve(both, tag), curve(uneven.root / "train", tag)
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)


def test_curvature_sums_every_sample_once(curved: Project, tmp_path: Path) -> None:
    finish(curved.args("curvature", tmp_path / "run"), tmp_path / "log")
    assert_close(tmp_path / "run/curvature.safetensors", curved.curvature)
    settings = load_tensors(tmp_path / "run/curvature.safetensors")[1]
    assert settings == load_tensors(curved.curvature)[1]
    assert settings["draws"] == 2 * 39


def test_the_scores_are_those_of_one_rank(chain: Project, tmp_path: Path) -> None:
    finish(chain.args("curvature", tmp_path / "curvature"), tmp_path / "log")
    curvature = tmp_path / "curvature/curvature.safetensors"
    args = unlearning(chain, tmp_path / "run")
    finish([*args, "--model.init_args.curvature", str(curvature)], tmp_path / "log")
    for name in ("weights", "losses", "scores"):
        assert_close(tmp_path / f"run/{name}.safetensors", chain.root / f"unlearn/{name}.safetensors")
    assert_close(tmp_path / "base.safetensors", chain.root / "base_losses.safetensors")
    ours, theirs = curve(tmp_path / "run", "unlearn/query_loss"), curve(chain.root / "unlearn", "unlearn/query_loss")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)


def test_prediction_on_two_ranks_gives_the_same_files(chain: Project, tmp_path: Path) -> None:
    finish(chain.args("sample", tmp_path / "sample"), tmp_path / "log")
    assert Store(str(tmp_path / "sample/queries.lmdb")).digest == Store(str(chain.queries)).digest
    finish(chain.args("similarity", tmp_path / "similarity"), tmp_path / "log")
    assert_close(tmp_path / "similarity/scores.safetensors", chain.root / "similarity/scores.safetensors")


STEP, DRAWS = f"{TASKS}LatentDiffusion.training_step", f"{TASKS}Unlearning.training_step"


def stopped_then_resumed(args: list[str], log: Path, rank: int, moment: Moment) -> None:
    """Stop one rank, end the other as it would be, start both again, and check how all of that ended."""
    ended = run_both(args, log, {rank: moment})
    if moment.sends == signal.SIGTERM:
        assert [one.status for one in ended] == [143, 143], ended
        assert STOPPED in ended[0].stderr
        assert "Traceback" not in ended[0].stderr + ended[1].stderr
    else:
        assert ended[rank].status == -signal.SIGKILL, ended
    finish(args, log)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "moment",
    [
        Moment(STEP, 4),
        Moment(STEP, 6, signal.SIGTERM),
        Moment("torch.optim:AdamW.step", 8),
        Moment(f"{TASKS}LatentDiffusion.validation_step", 2, signal.SIGTERM),
    ],
    ids=lambda moment: f"{moment.sends.name}-{moment.function.rpartition('.')[2]}",
)
def test_training_goes_on_exactly(uneven: Project, both: Path, tmp_path: Path, rank: int, moment: Moment) -> None:
    stopped_then_resumed(training(uneven, tmp_path / "run"), tmp_path / "log", rank, moment)
    assert_same(tmp_path / "run/checkpoints/last.ckpt", both / "checkpoints/last.ckpt")


def test_every_rank_keeps_the_gradients_of_its_own(uneven: Project, tmp_path: Path) -> None:
    settings = {"trainer__accumulate_grad_batches": 3, "trainer__max_steps": 4, "trainer__val_check_interval": 1000}
    finish(training(uneven, tmp_path / "straight", **settings), tmp_path / "log")
    args = training(uneven, tmp_path / "run", **settings)
    stopped_then_resumed(args, tmp_path / "log", 1, Moment(STEP, 8, signal.SIGTERM))
    assert_same(tmp_path / "run/checkpoints/last.ckpt", tmp_path / "straight/checkpoints/last.ckpt")


@pytest.mark.parametrize("sends", [signal.SIGKILL, signal.SIGTERM])
def test_curvature_goes_on_exactly(uneven: Project, tmp_path: Path, sends: signal.Signals) -> None:
    finish(uneven.args("curvature", tmp_path / "straight"), tmp_path / "log")
    args = uneven.args("curvature", tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", 1, Moment(f"{TASKS}Curvature.training_step", 4, sends))
    assert_same(tmp_path / "run/curvature.safetensors", tmp_path / "straight/curvature.safetensors")


@pytest.mark.parametrize(
    ("rank", "moment"),
    [
        (1, Moment(DRAWS, 3)),
        (0, Moment(DRAWS, 3, signal.SIGTERM)),
        (1, Moment("lightning_attr.loss_sweep:sample_losses", 9)),
        (0, Moment("lightning_attr.loss_sweep:LossSweep.join", 2)),
    ],
)
def test_unlearning_goes_on_exactly(chain: Project, tmp_path: Path, rank: int, moment: Moment) -> None:
    finish(unlearning(chain, tmp_path / "straight/run"), tmp_path / "log")
    args = unlearning(chain, tmp_path / "stopped/run")
    stopped_then_resumed(args, tmp_path / "log", rank, moment)
    for name in ("run/weights", "run/losses", "run/scores", "base"):
        assert_same(tmp_path / f"stopped/{name}.safetensors", tmp_path / f"straight/{name}.safetensors")


def test_sampling_goes_on_exactly(chain: Project, tmp_path: Path) -> None:
    args = chain.args("sample", tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", 0, Moment("datamodules.store.writer:StoreWriter.write", 4))
    assert Store(str(tmp_path / "run/queries.lmdb")).digest == Store(str(chain.queries)).digest


def test_the_command_starts_both_ranks_and_finishes_once(uneven: Project, both: Path, tmp_path: Path) -> None:
    args = training(uneven, tmp_path / "run")
    first = command(args)
    assert first == Ended(0, ""), first
    assert_same(tmp_path / "run/checkpoints/last.ckpt", both / "checkpoints/last.ckpt")
    before = snapshot(tmp_path / "run")
    again = command(args)
    assert again.status == 0
    assert again.stderr.count("finished already") == 1
    ended = run_both(args, tmp_path / "log")  # where a cluster starts the ranks, each finds out by itself
    assert [rank.status for rank in ended] == [0, 0]
    assert "finished already" in ended[0].stderr
    assert ended[1].stderr == ""
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("sends", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_whose_rank_gets_a_signal_ends_and_goes_on(
    uneven: Project, both: Path, tmp_path: Path, rank: int, sends: signal.Signals
) -> None:
    args = training(uneven, tmp_path / "run")
    ended = command(args, {rank: Moment(STEP, 6, sends)})
    assert "Traceback" not in ended.stderr
    if sends == signal.SIGTERM:
        assert (ended.status, ended.stderr.count(STOPPED)) == (143, 1), ended
    elif rank == 0:
        assert ended.status == -signal.SIGKILL
    else:
        assert ended.status == 1
        assert "rank 1: ended by SIGKILL" in ended.stderr
    finish(args, tmp_path / "log")
    assert_same(tmp_path / "run/checkpoints/last.ckpt", both / "checkpoints/last.ckpt")


@pytest.mark.parametrize("at", ["first", "last"])
def test_a_mistake_that_one_rank_meets_ends_both_with_one_message(uneven: Project, tmp_path: Path, at: str) -> None:
    """In stored order rank 0 has the first samples and rank 1 the last."""
    store = Store(str(uneven.store))
    position = 0 if at == "first" else len(store) - 1
    value = store.read("latent", [position])[0, 0].tobytes()
    size = uneven.store.stat().st_size
    damaged = flipped(uneven.store, tmp_path / "damaged.lmdb", (uneven.store.read_bytes().index(value) + 0.5) / size)
    args = uneven.args("curvature", tmp_path / "run", data__init_args__store=damaged)
    ended = command(args)
    assert ended.status == 1, ended
    assert ended.stderr.count("error: ") == 1, ended
    assert "damaged" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_mistake_that_both_ranks_meet_is_told_once(uneven: Project, tmp_path: Path) -> None:
    args = [*training(uneven, tmp_path / "run"), "--data.init_args.subset.first", "1"]
    ended = command(args)
    assert ended.status == 1, ended
    assert ended.stderr.count("expected at least one for each of the ranks (2)") == 1, ended
    assert "Traceback" not in ended.stderr
    assert read_json(tmp_path / "run/manifest.json")["status"] == "running"


def test_a_program_that_runs_a_stage_itself_cannot_start_more_ranks(
    uneven: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*training(uneven, tmp_path / "run"), "--trainer.devices", "2", "--trainer.strategy", "ddp"])
    assert "trainer.devices: found 2 ranks" in capfd.readouterr().err
