"""Checkpoints without what a training needs to go on."""

from pathlib import Path

import pytest
import torch
from miniature import Project

from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.model import main
from lightning_attr.errors import UserError
from lightning_attr.models import load
from lightning_attr.runs.checkpoints import read_to_resume


@pytest.mark.parametrize("half", [False, True])
def test_what_is_kept_is_the_averaged_model(project: Project, tmp_path: Path, half: bool) -> None:
    out = tmp_path / "model.ckpt"
    main([str(project.checkpoint), "--out", str(out), "--half", str(half)])
    model, kept = load(project.checkpoint), load(out)
    for (name, weight), (_, other) in zip(
        model.network.named_parameters(), kept.network.named_parameters(), strict=True
    ):
        assert other.dtype == torch.float32
        assert torch.equal(other, weight.half().float() if half else weight), name
    assert kept.made_from == model.made_from
    assert all(torch.equal(kept.null[name], value) for name, value in model.null.items())
    assert out.stat().st_size < project.checkpoint.stat().st_size / (5 if half else 3)
    with pytest.raises(UserError, match="expected the checkpoint of a training"):
        read_to_resume(out)


def test_stages_take_it_as_a_model(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "model.ckpt"
    main([str(project.checkpoint), "--out", str(out)])
    scores = []
    for checkpoint in (project.checkpoint, out):
        run = tmp_path / checkpoint.stem
        run_stage(project.args("curvature", run, model__init_args__checkpoint=checkpoint))
        scores.append((run / "curvature.safetensors").read_bytes()[-1000:])
    assert scores[0] == scores[1]


def test_a_damaged_one_is_refused(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "model.ckpt"
    main([str(project.checkpoint), "--out", str(out)])
    held = bytearray(out.read_bytes())
    held[len(held) // 2] ^= 1
    out.write_bytes(held)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(out)


def test_mistakes_are_named(project: Project, tmp_path: Path) -> None:
    checkpoint, out = str(project.checkpoint), str(tmp_path / "x.ckpt")
    for arguments, message in (
        ([checkpoint, "--out", checkpoint], "expected a new place"),
        ([checkpoint, "--out", str(tmp_path / "x")], "expected the name of a .ckpt"),
        (["x.safetensors", "--out", str(tmp_path / "x")], "--like: found none"),
        (["x.safetensors", "--like", "y", "--out", str(tmp_path / "x"), "--half", "true"], "--half: expected"),
        (["none.ckpt", "--out", out], "none.ckpt: no such file"),
    ):
        with pytest.raises(UserError) as refused:
            main(arguments)
        assert message in str(refused.value)
    assert not list(tmp_path.iterdir())
