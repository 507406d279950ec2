"""Tuning a feature on sets whose right answer is known, through the command line, also when it is killed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from abc_codes import NUISANCE, SIGNAL, make_coded_set
from abc_shapes import make_shapes_set
from stopped import Moment, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from lightning_attr.abc.set import AbcSet
from lightning_attr.artifacts import load_tensors, read_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.errors import UserError
from lightning_attr.features.tuned import load_tuned
from lightning_attr.ground_truth.metrics.functional import average_precision
from lightning_attr.main import main
from lightning_attr.methods import Similarity, TunedSimilarity, attribute

TASK = "lightning_attr.tasks:TunedFeatures."


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded")
    make_coded_set(folder, nuisance=1.0, noise=0.2)
    return folder


def args(abc: Path, folder: Path, **settings: Any) -> list[str]:
    config = {
        "trainer": {"default_root_dir": str(folder), "accelerator": "cpu", "max_epochs": 30, "log_every_n_steps": 1},
        "checkpoint": {"every_n_train_steps": 1},
        "model": {
            "class_path": "lightning_attr.tasks.TunedFeatures",
            "init_args": {"abc": str(abc), "learning_rate": 0.01, "batch_size": 16, "distractors": 64, **settings},
        },
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["fit", "-c", str(path)]


@pytest.fixture(scope="module")
def tuned(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    run_stage(args(coded, folder))
    return folder


def test_what_tells_models_apart_is_found(tuned: Path) -> None:
    """Numbers that say nothing are weighed down, in both maps; those that are the code are not."""
    mappers = load_tuned(tuned / "features.safetensors").mappers
    for side in (mappers.query, mappers.sample):
        gain = (side.weight + torch.eye(SIGNAL + NUISANCE)).square().sum(0).sqrt()
        assert gain[:SIGNAL].mean() > 1.5 * gain[SIGNAL:].mean()


def test_better_than_the_feature_as_it_is_on_other_models(coded: Path, tuned: Path) -> None:
    """By an interval that leaves out 0, as the scores of the two methods say by themselves."""
    abc = AbcSet.load(coded)
    found: dict[str, torch.Tensor] = {}
    for method in (Similarity(), TunedSimilarity(str(tuned / "features.safetensors"))):
        scores = attribute(method, abc.queries, abc.gallery)
        by_model = []
        for model in abc.of_split("test"):
            rows = scores.scores[torch.from_numpy(abc.queries.positions(model.query_ids))]
            gallery = abc.gallery_of(model)
            relevant = torch.from_numpy(np.isin(abc.gallery.ids[gallery], model.exemplars)).expand(len(rows), -1)
            by_model.append(average_precision(rows[:, gallery], relevant).mean())
        found[scores.method] = torch.stack(by_model)
    said = read_json(tuned / "comparison.json")["metrics"]["mean_average_precision"]
    assert said["frozen"][0] == pytest.approx(float(found["similarity-latent"].mean()), abs=1e-6)
    assert said["tuned"][0] == pytest.approx(float(found["tuned-latent"].mean()), abs=1e-6)
    estimate, low, _ = said["difference"]
    assert estimate > 0.2
    assert low > 0


def test_curves_begin_with_the_feature_as_it_is(tuned: Path) -> None:
    events = EventAccumulator(str(tuned)).Reload()
    points = {name: [point.value for point in events.Scalars(f"val/{name}")] for name in ("mean_average_precision",)}
    curve = points["mean_average_precision"]
    kept = load_tuned(tuned / "features.safetensors").settings["validation"]["mean_average_precision"]
    assert max(curve) == pytest.approx(kept, abs=1e-6)
    assert curve[0] < kept
    assert {"train/loss", "val/recall_at_10"} <= set(events.Tags()["scalars"])


def test_training_ends_when_nothing_gets_better(coded: Path, tmp_path: Path) -> None:
    run_stage(args(coded, tmp_path / "run", learning_rate=0.0, patience=2))
    tensors, settings = load_tensors(tmp_path / "run/features.safetensors")
    assert not any(bool(tensor.any()) for tensor in tensors.values())
    assert settings["steps"] == 2 * 4  # two epochs of four batches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "call"),
    [
        ("lightning_attr.features.stored:Latent.rows", 3),
        (f"{TASK}training_step", 1),
        (f"{TASK}training_step", 6),
        (f"{TASK}validation_step", 9),
        (f"{TASK}on_validation_epoch_end", 2),
        (f"{TASK}_end_if_stale", 4),
        (f"{TASK}on_fit_end", 1),
    ],
)
def test_killed_and_started_again_it_ends_the_same(
    coded: Path, ended_early: Path, tmp_path: Path, moment: str, call: int
) -> None:
    words = args(coded, tmp_path / "run", learning_rate=0.05, patience=2)
    assert run(words, tmp_path / "log", Moment(moment, call)).status == -signal.SIGKILL
    again = run(words, tmp_path / "log")
    assert again.status == 0, again
    for name in ("features.safetensors", "comparison.json"):
        assert (tmp_path / "run" / name).read_bytes() == (ended_early / name).read_bytes(), name


@pytest.fixture(scope="module")
def ended_early(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a stop, which ends before its last epoch because nothing gets better."""
    folder = tmp_path_factory.mktemp("early") / "run"
    run_stage(args(coded, folder, learning_rate=0.05, patience=2))
    assert 3 * 4 <= load_tensors(folder / "features.safetensors")[1]["steps"] < 30 * 4
    return folder


def test_as_a_method_of_the_command_line(coded: Path, tuned: Path, tmp_path: Path) -> None:
    file = tuned / "features.safetensors"
    main_args = [
        "predict", "--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu",
        "--model", "lightning_attr.tasks.Attribution", "--model.init_args.queries", str(coded / "queries.lmdb"),
        "--model.init_args.method", "lightning_attr.methods.TunedSimilarity",
        "--model.init_args.method.init_args.features", str(file),
        "--data", "datamodules.LatentDataModule", "--data.init_args.store", str(coded / "gallery.lmdb"),
    ]  # fmt: skip
    run_stage(main_args)
    scores = Scores.load(tmp_path / "run/scores.safetensors")
    abc = AbcSet.load(coded)
    expected = attribute(TunedSimilarity(str(file)), abc.queries, abc.gallery)
    torch.testing.assert_close(scores.scores, expected.scores)
    assert scores.settings["digests"]["features"] == expected.settings["digests"]["features"]


def test_stores_of_other_encoders_are_refused(tuned: Path, tmp_path: Path) -> None:
    other = make_coded_set(tmp_path, {"test": 1}, distractors=5, encoder=b"other numbers")
    with pytest.raises(UserError, match="found encoders of digest"):
        attribute(TunedSimilarity(str(tuned / "features.safetensors")), other.queries, other.gallery)


@pytest.mark.slow
def test_the_shipped_config_on_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds of shapes: latents tell places and backgrounds, tuned ones what is shown; so with kinds never seen."""
    make_shapes_set(tmp_path / "runs/abc/set", 900, 240)
    config = Path(__file__).parents[3] / "configs/abc/tuned_features.yaml"
    monkeypatch.chdir(tmp_path)
    run_stage(["fit", "-c", str(config), "--trainer.accelerator", "cpu"])
    said = read_json(Path("runs/abc/tuned/comparison.json"))["metrics"]["mean_average_precision"]
    assert said["difference"][1] > 0.1


def test_a_set_without_validation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_coded_set(tmp_path, {"train": 2}, distractors=5)
    with pytest.raises(SystemExit) as ended:
        main(args(tmp_path, tmp_path / "out/run"))
    assert ended.value.code == 1
    assert "error: split: found no model of validation, expected one of train" in capsys.readouterr().err
