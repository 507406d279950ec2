"""The metrics of an evaluation state their error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from damage import Refused, assert_says
from miniature import Project
from synthetic_packs import world

from lightning_attr.artifacts import read_json
from lightning_attr.cli import run_stage
from lightning_attr.metrics import mean_interval


def test_every_mean_has_an_interval(project: Project) -> None:
    content = read_json(project.root / "evaluate/metrics.json")
    names = {key.rpartition("/")[2] for key in content["metrics"]}
    assert names == {"loss_change", "generation_deviation", "recall_at_4", "mean_average_precision"}
    for key, values in content["metrics"].items():
        if values["known"] > 1:
            assert values["low"] <= values["mean"] <= values["high"], key
    changes = torch.tensor([point["loss_change"] for point in content["loss_changes"]]).double()
    found = content["metrics"]["top/k=4/loss_change"]
    expected = mean_interval(changes)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def test_scores_against_a_pack_and_against_what_is_relevant(project: Project, tmp_path: Path) -> None:
    made = world(subsets=6)
    made.pack().save(tmp_path / "pack")
    scores = tmp_path / "scores.safetensors"
    made.scores("truth", made.influence).save(scores)
    arguments = project.args("evaluate", tmp_path / "run", model__init_args__pack=tmp_path / "pack.json")
    run_stage([*arguments, f"--model.init_args.scores=[{scores}]", "--model.init_args.relevant=null"])
    content = read_json(tmp_path / "run/metrics.json")
    assert "top/k=4/loss_change" in content["metrics"]
    assert [each["method"] for each in content["pack"]["scored"]] == ["truth"]
    assert {path.name for path in (tmp_path / "run").glob("*.png")} >= {"loss_change.png", "pack_loss_change.png"}
    manifest = read_json(tmp_path / "run/manifest.json")
    assert {str(tmp_path / "pack.json"), str(scores)} <= set(manifest["inputs"])


def test_a_pack_of_other_samples_is_refused(project: Project, tmp_path: Path, refused: Refused) -> None:
    world(subsets=3).pack().save(tmp_path / "pack")
    arguments = project.args("evaluate", tmp_path / "run", model__init_args__pack=tmp_path / "pack.json")
    assert_says(refused(arguments), project.scores, "of another query store")
    arguments = project.args("evaluate", tmp_path / "other", model__init_args__pack=tmp_path / "none.json")
    assert_says(refused(arguments), tmp_path / "none.json", "no such file")
