"""The losses before unlearning are reused where store, checkpoint and settings agree, and only there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import Project

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.errors import UserError
from lightning_attr.losses import delta_scores

MEASURED_ANEW = "measured anew"


def recorder(project: Project, base: Path, **settings: Any) -> str:
    callbacks = json.loads(project.recorder(base))
    callbacks[0]["init_args"].update(settings)
    return json.dumps(callbacks)


def test_losses_before_are_shared_by_queries(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.safetensors"
    callbacks = project.recorder(base)
    run_stage(project.args("unlearn", tmp_path / "0", trainer__callbacks=callbacks))
    written = base.stat().st_mtime_ns
    run_stage(project.args("unlearn", tmp_path / "1", trainer__callbacks=callbacks, model__init_args__query=1))
    assert base.stat().st_mtime_ns == written
    assert MEASURED_ANEW not in capfd.readouterr().err
    first, second = (Scores.load(tmp_path / f"{query}/scores.safetensors") for query in (0, 1))
    assert not torch.equal(first.scores, second.scores)
    assert Scores.stack([first, second]).query_id.tolist() == [0, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"draws": {"seed": 1}},
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({"draws": {"timesteps": 2}}, {"captions": 2})),
    ],
    ids=str,
)
def test_losses_of_other_settings_are_measured_anew(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, Any]
) -> None:
    base = tmp_path / "base.safetensors"
    run_stage(project.args("unlearn", tmp_path / "a", trainer__callbacks=project.recorder(base)))
    before = load_tensors(base)[0]["losses"]
    other = recorder(project, base, **settings)
    run_stage(project.args("unlearn", tmp_path / "b", trainer__callbacks=other))
    assert MEASURED_ANEW in capfd.readouterr().err
    assert not torch.equal(load_tensors(base)[0]["losses"], before)


def test_scores_are_the_deltas_of_the_losses(project: Project) -> None:
    before = load_tensors(project.root / "base_losses.safetensors")[0]["losses"]
    after = load_tensors(project.root / "unlearn/losses.safetensors")[0]["losses"]
    scores = Scores.load(project.scores)
    assert before.shape == after.shape == (40, 1, 1)
    assert torch.equal(scores.scores[0], delta_scores(before, after))
    assert scores.query_id.tolist() == [0]


def test_only_unlearning_can_be_recorded(project: Project, tmp_path: Path) -> None:
    callbacks = project.recorder(tmp_path / "base.safetensors")
    with pytest.raises(UserError, match="expected Unlearning"):
        run_stage(project.args("curvature", tmp_path / "run", trainer__callbacks=callbacks))
