"""One command from a model, its images and an output to the answer; each stage of it is an ordinary one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import assert_says
from miniature import Project
from PIL import Image
from tiny_adapters import keys, lay_over, save_diffusers
from tiny_pipelines import WORDS, make_pipeline

from datamodules.grouping import read_groups
from datamodules.store import Store
from lightning_attr.artifacts import read_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import FinishedError, run_stage
from lightning_attr.commands.explain import command
from lightning_attr.commands.explain.command import main
from lightning_attr.commands.explain.estimate import Speed, check_fits, estimated, measured
from lightning_attr.commands.explain.plan import PASSES
from lightning_attr.encoders import thumb_images
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.retrained import load_retrained
from lightning_attr.models import load
from lightning_attr.shares import Shares, SoftAttribution

IMAGES = 6


@dataclass(frozen=True)
class Mine:
    """A pipeline, its LoRA, the images that it was trained on, and one of them as an output."""

    root: Path

    def args(self, **changed: Any) -> list[str]:
        options = {
            "model": self.root / "pipeline", "lora": self.root / "lora", "images": self.root / "images",
            "query": self.root / "out.png", "prompt": "the red house", "out": self.root / "mine", "draws": 2, **changed,
        }  # fmt: skip
        return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Mine:
    """What a user has, and the answer."""
    root = tmp_path_factory.mktemp("explain")
    pipeline = make_pipeline("sd1", root / "pipeline")
    lay_over(pipeline.unet)
    save_diffusers(root / "lora", keys(unet=pipeline.unet))
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        path = root / "images" / f"picture {number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text("the red house" if number == 3 else " ".join(rng.choice(WORDS, 3)))
    shutil.copy(root / "images/picture 3.png", root / "out.png")
    made = Mine(root)
    said = StringIO()
    with redirect_stdout(said):
        main(made.args())
    (root / "said.txt").write_text(said.getvalue())
    return made


def test_only_the_answer_is_printed(mine: Mine) -> None:
    """What the stages inside say is not the answer."""
    lines = (mine.root / "said.txt").read_text().splitlines()
    assert lines[0].strip() == "out.png: the red house"
    run = mine.root / "mine"
    assert [line for line in lines if line.startswith(("made:", "next:"))] == [
        f"made: {run / 'answer.json'}, {run / 'report.html'}"
    ]
    assert lines[-1].startswith("made:")
    assert not any("samples" in line or "inspect" in line for line in lines)


def test_the_answer_names_files_the_one_that_it_was_first(mine: Mine) -> None:
    answer = read_json(mine.root / "mine/answer.json")
    (query,) = answer["queries"]
    scores = Scores.load(mine.root / "mine/attribute/influence/scores.safetensors")
    assert (query["key"], query["prompt"]) == ("out.png", "the red house")
    assert (query["top"][0]["key"], query["top"][0]["caption"]) == ("picture 3.png", "the red house")
    assert [each["id"] for each in query["top"]] == scores.top(0, IMAGES)
    assert [each["score"] for each in query["top"]] == [score for _, score in scores.ranked(0, IMAGES)]
    assert answer["method"] == scores.method == "influence-ekfac"
    assert query["agreement"]["similarity"] == {"of": 6, "common": 6, "by_chance": 6.0}
    assert "share" not in query["top"][0]  # nothing is calibrated


def test_the_page_is_there(mine: Mine) -> None:
    assert "picture 3.png" in (mine.root / "mine/report.html").read_text()


def test_again_it_is_finished_and_says_the_same(mine: Mine, capfd: pytest.CaptureFixture[str]) -> None:
    before = (mine.root / "mine/answer.json").read_bytes()
    main(mine.args())
    printed = capfd.readouterr()
    assert "finished already" in printed.err
    assert "picture 3.png" in printed.out
    assert (mine.root / "mine/answer.json").read_bytes() == before


@pytest.mark.slow
def test_contributors_may_be_asked_for_later(mine: Mine, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured anew."""
    before = {path: path.stat().st_mtime_ns for path in (mine.root / "mine").rglob("*.safetensors")}
    main([*mine.args(), "--grouping", "key"])
    printed = capfd.readouterr().out
    assert "Which contributors, how much, how sure (key)" in printed
    groups = read_json(mine.root / "mine/answer.json")["groups"]
    assert (groups["contributors"][0]["group"], groups["count"]) == ("picture 3.png", IMAGES)
    assert "Which contributors" in (mine.root / "mine/report.html").read_text()
    main([*mine.args(), "--grouping", "key"])
    assert "finished already" in capfd.readouterr().err
    with pytest.raises(UserError, match="with the attribute 'artist', expected"):
        main([*mine.args(), "--grouping", "artist"])
    main(mine.args())
    assert "groups" not in read_json(mine.root / "mine/answer.json")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def save_shares(path: Path, scores: Scores, error: float, method: str = "influence-ekfac") -> Path:
    """What turns these scores into shares, as if it had been fitted elsewhere for the same method and settings."""
    settings = {
        "of_method": scores.of_method,
        "gallery": 1000,
        "digests": {"gallery": "another"},
        "calibration": {"error": [error, error, error]},
    }
    Shares(SoftAttribution(kappa=1.0, b=1.0, slope=2.0, offset=-2.0), method, settings).save(path)
    return path


@pytest.mark.slow
def test_shares_where_they_were_fitted_for_the_method(mine: Mine, tmp_path: Path, capfd: Any) -> None:
    folder = mine.root / "mine"
    scores = Scores.load(folder / "attribute/influence/scores.safetensors")
    file = save_shares(tmp_path / "shares.safetensors", scores, error=0.03)
    main(mine.args(shares=file))
    printed, answer = capfd.readouterr().out, read_json(folder / "answer.json")
    expected = Shares.load(file).soft.shares(scores.scores)[0]
    (query,) = answer["queries"]
    by_id = dict(zip(scores.sample_id.tolist(), expected.tolist(), strict=False))
    assert [each["share"] for each in query["top"]] == [by_id[each["id"]] for each in query["top"]]
    assert query["rest"] + sum(each["share"] for each in query["top"]) == pytest.approx(1)
    assert answer["shares"]["gallery"] == 1000
    assert f"{query['rest']:.1%} is from none of these images." in printed
    assert "fitted on customised models and 1,000 images, with an error of 0.030 there" in printed
    page = (folder / "report.html").read_text()
    assert f"{query['top'][0]['share']:.1%}" in page
    assert f"{query['rest']:.1%} of the output is from none of these images" in page
    main([*mine.args(shares=file), "--grouping", "key"])
    groups = read_json(folder / "answer.json")["groups"]["contributors"]
    assert {each["group"]: each["share"] for each in groups} == {
        each["key"]: pytest.approx(each["share"]) for each in query["top"]
    }
    assert f"{groups[0]['share']:.1%}" in capfd.readouterr().out
    assert '<th scope="col" class="right">share</th>' in (folder / "report.html").read_text()
    main(mine.args(shares=save_shares(tmp_path / "b", scores, error=0.03, method="trak")))
    assert "No shares: they are fitted for trak, not for influence-ekfac." in capfd.readouterr().out
    answer = read_json(folder / "answer.json")
    assert answer["shares"]["unused"].startswith("they are fitted for trak")
    assert "share" not in answer["queries"][0]["top"][0]
    assert "No scores are those that the shares were fitted for: trak" in (folder / "report.html").read_text()
    main(mine.args())
    assert "shares" not in read_json(folder / "answer.json")


def test_shares_that_are_not_calibrated_are_refused_at_once(mine: Mine, tmp_path: Path) -> None:
    scores = Scores.load(mine.root / "mine/attribute/influence/scores.safetensors")
    file = save_shares(tmp_path / "shares.safetensors", scores, error=0.2)
    with pytest.raises(UserError, match=r"shares\.safetensors: found an error of 0\.200, expected a calibration error"):
        main(mine.args(out=tmp_path / "new", shares=file))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stage", ["curvature", "influence", "similarity"])
def test_each_stage_can_be_run_by_hand(mine: Mine, stage: str) -> None:
    verb = "fit" if stage == "curvature" else "predict"
    with pytest.raises(FinishedError):
        run_stage([verb, "-c", str(mine.root / f"mine/configs/{stage}.yaml")])


def test_a_lost_result_is_made_again(mine: Mine, tmp_path: Path) -> None:
    shutil.copytree(mine.root / "mine", tmp_path / "mine")
    before = (mine.root / "mine/answer.json").read_bytes()
    # Its configs name the folder where it was made.
    result = mine.root / "mine/attribute/similarity/scores.safetensors"
    result.unlink()
    main(mine.args())
    assert result.exists()
    assert (mine.root / "mine/answer.json").read_bytes() == before


def test_a_pipe_is_not_waited_for(mine: Mine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for option in ("lora", "query"):
        with pytest.raises(UserError, match=r"file (or|nor a) folder"):
            main(mine.args(out=tmp_path / "new", **{option: tmp_path / "pipe"}))


def test_writes_into_no_folder_of_something_else(mine: Mine, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").touch()
    with pytest.raises(UserError, match="with other things in it, expected a new folder"):
        main(mine.args(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_goes_on_where_it_was_killed_at_its_first_config(mine: Mine, tmp_path: Path) -> None:
    shutil.copytree(
        mine.root / "mine/configs", tmp_path / "configs", ignore=shutil.ignore_patterns("influence*", "without")
    )
    main([*mine.args(out=tmp_path), "--dry_run"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"draws": 3}, ["configs/influence.yaml", "another question", "choose another --out"]),
        ({"prompt": "a cat"}, ["queries.lmdb", "choose another --out"]),
        ({"lora": None}, ["model.yaml", "another model", "choose another --out"]),
        ({"check": 2}, ["--check", "no recipe", "--train"]),
        ({"query": "nothing.png"}, ["nothing.png", "no such file"]),
        ({"images": "nothing"}, ["nothing", "no such file or folder"]),
        ({"model": "nothing"}, ["nothing"]),
        ({"draws": 0}, ["--draws", "at least 1"]),
        ({"weights": "all"}, ["weights", "linear layers and convolutions alone"]),
        ({"lora": None, "alpha": 2}, ["--alpha", "nothing uses it"]),
        ({"train": "recipe.yaml"}, ["--train", "nothing uses it"]),
        ({"out": ""}, ["--out", "expected one of its own"]),
    ],
)
def test_mistakes(mine: Mine, changed: dict[str, Any], words: list[str]) -> None:
    before = {path: path.read_bytes() for path in mine.root.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(UserError) as refused:
        main(mine.args(**changed))
    assert_says(str(refused.value), *words)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in before} == before


def test_a_dry_run_prints_the_configs_and_makes_nothing(mine: Mine, tmp_path: Path, capfd: Any) -> None:
    main([*mine.args(out=tmp_path / "new"), "--dry_run"])
    printed = capfd.readouterr().out
    for words in ("prepare images", "prepare queries", "class_path: lightning_attr.tasks.Curvature", "memory", "disk"):
        assert words in printed
    assert not (tmp_path / "new").exists()


def test_what_does_not_fit_is_refused_before_it_starts(mine: Mine, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(command, "free_memory", lambda device: 1000)
    with pytest.raises(UserError) as refused:
        main(mine.args(out=tmp_path / "new", draws=10))
    assert_says(str(refused.value), "memory", "give 1 at once", "--weights cross_kv")
    assert not (tmp_path / "new/train.lmdb").exists()


def test_the_estimate_counts_draws_and_queries() -> None:
    speed = Speed(batch_size=4, seconds=0.5, gradients=1000, sample=10)
    estimate = estimated(speed, samples=100, showings=150, queries=3, draws=20, free=10**6)
    assert estimate.seconds["influence"] == 100 * 20 * 0.5
    assert estimate.seconds["curvature"] == 2 * PASSES * 150 * 0.5
    assert estimate.memory == 3 * 1000 + 2 * 4 * 1000
    check_fits(estimate, 3)


def test_a_batch_size_is_measured(mine: Mine) -> None:
    model = load(mine.root / "mine/model.yaml")
    speed = measured(model, "adapter")
    assert speed.batch_size in (1, 2, 4, 8, 16, 32, 64)
    assert speed.gradients == 4 * sum(weight.numel() for weight in model.select("adapter").values())
    assert measured(model, "adapter", batch_size=3).batch_size == 3


@pytest.mark.slow
def test_a_model_of_ours_is_checked_by_retraining(project: Project, tmp_path: Path, capfd: Any) -> None:
    """Without the first images, and without the first contributor where a grouping is asked for."""
    folder = tmp_path / "mine"
    with Store(project.store) as store:
        thumb_images(store, [7])[0].save(tmp_path / "out.png")
    args = [
        "--model", str(project.checkpoint), "--images", str(project.store), "--query", str(tmp_path / "out.png"),
        "--prompt", "a red circle", "--out", str(folder), "--draws", "2", "--check", "3",
    ]  # fmt: skip
    main(args)
    answer = json.loads((folder / "answer.json").read_text())
    for query in answer["queries"]:
        assert query["check"]["removed"] == 3
        assert set(query["check"]["loss_change"]) == {"top", "random"}
        assert query["check"]["loss_change"]["top"] != query["check"]["loss_change"]["random"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    capfd.readouterr()
    main([*args, "--grouping", "colour"])
    printed = capfd.readouterr().out
    first, *others = json.loads((folder / "answer.json").read_text())["groups"]["contributors"]
    without = folder / "check/group/colour" / first["group"]
    tensors, settings = load_retrained(without / "retraining.safetensors")
    random, as_many = load_retrained(folder / f"check/random-{first['images']}/retraining.safetensors")
    assert (settings["grouping"], settings["groups"], settings["k"]) == ("colour", [first["group"]], first["images"])
    assert (as_many["method"], as_many["k"]) == ("random", first["images"])
    with Store(project.store) as store:
        members = read_groups(store, "colour").members(first["group"])
        assert tensors["removed_id"].tolist() == store.ids[members].tolist()
    for name, each in (("group", tensors), ("random", random)):
        change = (each["retrained_losses"] - each["original_losses"]).mean()
        assert first["check"]["loss_change"][name] == pytest.approx(float(change))
    assert f"Trained again without {first['group']}, the model's loss at this output" in printed
    assert not any("check" in each for each in others)
    assert "ΔL, as many random" in (folder / "report.html").read_text()
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_stopped_it_goes_on(mine: Mine, tmp_path: Path) -> None:
    args = mine.args(out=tmp_path / "stopped")
    command_line = [sys.executable, "-m", "lightning_attr.main", "explain", *args]
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "stopped/curvature/manifest.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert not (tmp_path / "stopped/answer.json").exists()
    main(args)
    (query,) = read_json(tmp_path / "stopped/answer.json")["queries"]
    (expected,) = read_json(mine.root / "mine/answer.json")["queries"]
    assert [each["key"] for each in query["top"]] == [each["key"] for each in expected["top"]]
