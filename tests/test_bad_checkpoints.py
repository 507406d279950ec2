"""Checkpoints and artefacts that are missing, damaged, of something else, or malicious: refused with one message."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Refused, assert_says, changed, flipped, truncated
from miniature import Project

from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.cli import main


def test_validate_needs_a_checkpoint(project: Project, tmp_path: Path, refused: Refused) -> None:
    args = ["validate", *project.args("train", tmp_path / "run")[1:]]
    assert_says(refused(args), tmp_path / "run/checkpoints/last.ckpt", "no such checkpoint")
    assert_says(refused([*args, "--ckpt_path", "last"]), tmp_path / "run/checkpoints/last.ckpt")
    assert_says(
        refused([*args, "--ckpt_path", str(tmp_path / "x.ckpt")]),
        tmp_path / "x.ckpt",
        "expected last or a file that is there",
    )


def test_validate_takes_the_last_checkpoint(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    main(["validate", *project.args("train")[1:]])
    assert "val/loss" in capfd.readouterr().out


def test_fit_from_last_without_one(project: Project, tmp_path: Path, refused: Refused) -> None:
    args = [*project.args("train", tmp_path / "run"), "--ckpt_path", "last"]
    assert_says(refused(args), tmp_path / "run/checkpoints/last.ckpt", "no such checkpoint")
    args = [*project.args("train", tmp_path / "run"), "--ckpt_path", str(tmp_path / "none.ckpt")]
    assert_says(refused(args), tmp_path / "none.ckpt", "expected last or a file that is there")


def test_a_checkpoint_of_another_architecture(project: Project, tmp_path: Path, refused: Refused) -> None:
    args = project.args("train", tmp_path / "run", model__init_args__denoiser__block_out_channels="[12]")
    message = refused([*args, "--ckpt_path", str(project.checkpoint)])
    assert_says(message, "another architecture", "block_out_channels", "[8]", "[12]")
    args = project.args("leave_k_out", tmp_path / "l", model__init_args__denoiser__layers_per_block=2)
    assert_says(refused(args), project.checkpoint, "layers_per_block")


def test_curvature_of_other_weights_or_another_checkpoint(project: Project, tmp_path: Path, refused: Refused) -> None:
    message = refused(project.args("unlearn", tmp_path / "a", model__init_args__weights="attention"))
    assert_says(message, "curvature", "attn1", "'cross_kv'")
    other = changed(
        project.checkpoint, tmp_path / "other.ckpt", lambda found: next(iter(found["state_dict"].values())).add_(1)
    )
    message = refused(project.args("unlearn", tmp_path / "b", model__init_args__checkpoint=other))
    assert_says(message, project.curvature, other)
    wrong = {"model__init_args__curvature": project.root / "unlearn/weights.safetensors"}
    assert_says(refused(project.args("unlearn", tmp_path / "c", **wrong)), "weights.safetensors", "curvature")
    foreign = {"model__init_args__curvature": project.scores}
    assert_says(refused(project.args("unlearn", tmp_path / "d", **foreign)), project.scores)


Change = Callable[[dict[str, Any]], object]


class Malicious:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_a_malicious_checkpoint_is_refused_and_not_run(
    project: Project, tmp_path: Path, refused: Refused, form: str
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "malicious.ckpt"
    checkpoint = torch.load(project.checkpoint, weights_only=True)
    checkpoint["hyper_parameters"] = {"evil": Malicious(marker)}
    if form == "zip":
        torch.save(checkpoint, path)
    else:
        path.write_bytes(pickle.dumps({"evil": Malicious(marker)}))
    for args in (
        [*project.args("train", tmp_path / "fit"), "--ckpt_path", str(path)],
        ["validate", *project.args("train", tmp_path / "fit")[1:], "--ckpt_path", str(path)],
        project.args("sample", tmp_path / "sample", model__init_args__checkpoint=path),
        project.args("unlearn", tmp_path / "unlearn", model__init_args__checkpoint=path),
        project.args("leave_k_out", tmp_path / "leave", model__init_args__original=path),
    ):
        assert_says(refused(args), path, "refused")
        assert not marker.exists()
    run = Path(shutil.copytree(project.checkpoint.parents[1], tmp_path / "run"))
    shutil.copy(path, run / "checkpoints/last.ckpt")
    assert_says(refused(project.args("train", run, trainer__max_steps=1000)), "last.ckpt", "refused")
    assert not marker.exists()
    torch.load(path, weights_only=False) if form == "zip" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the trap works


@pytest.mark.parametrize("damage", ["garbage", "empty", "truncated", "text", "tensor", "flipped"])
def test_a_damaged_checkpoint(project: Project, tmp_path: Path, refused: Refused, damage: str) -> None:
    path = tmp_path / "damaged.ckpt"
    if damage == "truncated":
        truncated(project.checkpoint, path)
    elif damage == "flipped":
        flipped(project.checkpoint, path, 0.5)
    elif damage == "tensor":
        torch.save(torch.ones(3), path)
    else:
        path.write_bytes({"garbage": os.urandom(4096), "empty": b"", "text": b"trainer: {}\n"}[damage])
    assert_says(refused(project.args("sample", tmp_path / "sample", model__init_args__checkpoint=path)), path)
    assert_says(refused([*project.args("train", tmp_path / "fit"), "--ckpt_path", str(path)]), path)


NOT_RESUMED: dict[str, Change] = {
    "no loops": lambda found: found.update(loops=None),
    "a rate in words": lambda found: found["optimizer_states"][0]["param_groups"][0].update(lr="fast"),
    "an average in words": lambda found: found.update(current_model_state="a"),
    "a model of a list": lambda found: found.update(trained_model=[1]),
    "a denoiser of a list": lambda found: found["trained_model"].update(denoiser=[1]),
}


@pytest.mark.parametrize("name", NOT_RESUMED)
def test_a_checkpoint_that_no_run_goes_on_from(project: Project, tmp_path: Path, refused: Refused, name: str) -> None:
    """Lightning takes up anything, and fails at a later step, or takes it for the truth."""
    path = changed(project.checkpoint, tmp_path / "other.ckpt", NOT_RESUMED[name])
    args = project.args("train", tmp_path / "run", trainer__max_steps=14)
    assert_says(refused([*args, "--ckpt_path", str(path)]), "checkpoint ")
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_a_checkpoint_without_digests_goes_on(project: Project, tmp_path: Path) -> None:
    path = changed(project.checkpoint, tmp_path / "other.ckpt", lambda found: found)
    main([*project.args("train", tmp_path / "run", trainer__max_steps=14), "--ckpt_path", str(path)])
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 14


@pytest.mark.parametrize("stage", ["curvature", "unlearn"])
def test_a_state_of_another_task(project: Project, tmp_path: Path, refused: Refused, stage: str) -> None:
    """These tasks' states are not compared by Lightning: of another one nothing would be taken up."""
    other = {"curvature": "unlearn", "unlearn": "curvature"}[stage]
    path = project.root / other / "checkpoints/last.ckpt"
    message = refused([*project.args(stage, tmp_path / "run"), "--ckpt_path", str(path)])
    words = {"curvature": "missing, expected as this run has it", "unlearn": "checkpoint of other weights: found 0"}
    assert_says(message, words[stage])


def test_an_artefact_where_a_checkpoint_belongs(project: Project, tmp_path: Path, refused: Refused) -> None:
    other = project.root / "curvature/checkpoints/last.ckpt"
    message = refused(project.args("sample", tmp_path / "run", model__init_args__checkpoint=other))
    assert_says(message, other, "expected a checkpoint of LatentDiffusion")
    assert_says(refused([*project.args("train", tmp_path / "fit"), "--ckpt_path", str(other)]), "checkpoint")


@pytest.mark.parametrize("key", ["curvature", "scores"])
def test_damaged_artefacts(project: Project, tmp_path: Path, refused: Refused, key: str) -> None:
    source, stage, setting = {
        "curvature": (project.curvature, "unlearn", "model__init_args__curvature"),
        "scores": (project.scores, "leave_k_out", "data__init_args__exclude__scores"),
    }[key]
    for path in (truncated(source, tmp_path / "half"), flipped(source, tmp_path / "flipped", 0.9), tmp_path / "none"):
        assert_says(refused(project.args(stage, tmp_path / f"{path.name}-run", **{setting: path})), path)
