"""Unlearning with any curvature, and of a region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import Refused, assert_says
from miniature import Project
from PIL import Image

from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.cli import run_stage
from lightning_attr.curvature import Damping, load_curvature
from lightning_attr.errors import UserError
from lightning_attr.region import read_region
from lightning_attr.tasks import Unlearning


def unlearning(project: Project, run: Path, **settings: Any) -> list[str]:
    """One step, and no sweeps."""
    defaults = {"trainer__callbacks": "[]", "trainer__max_steps": 1, "model__init_args__draws__mode": "shared"}
    return project.args("unlearn", run, **{**defaults, **settings})


def weights(project: Project, run: Path, **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Changes of the weights, and the settings beside them."""
    run_stage(unlearning(project, run, **settings))
    changed, saved = load_tensors(run / "weights.safetensors")
    original = torch.load(project.checkpoint, weights_only=True)["state_dict"]
    return {name: value - original[f"denoiser.{name}"] for name, value in changed.items()}, saved


@pytest.mark.parametrize("path", ["curvature.safetensors", "factors_ekfac"])
def test_ekfac_preconditions_the_step(project: Project, ekfac: Path, tmp_path: Path, path: str) -> None:
    big = {"model__init_args__step_size": 100}
    plain, _ = weights(project, tmp_path / "plain", model__init_args__curvature="null", **big)
    found, settings = weights(project, tmp_path / "run", model__init_args__curvature=ekfac / path, **big)
    expected = load_curvature(ekfac / path).inverse(plain, Damping(0.1, "mean"))
    for name, step in found.items():
        assert (step - expected[name]).norm() < 1e-3 * expected[name].norm(), name
    assert "curvature" in settings["digests"]


def test_the_fisher_of_the_base_serves_a_customised_model(project: Project, tmp_path: Path, refused: Refused) -> None:
    base = f'{{"model": "{project.checkpoint}", "adapter": {{"kind": "custom_diffusion"}}}}'
    settings = {"trainer__max_steps": 2, "trainer__callbacks": "[]", "trainer__val_check_interval": "null"}
    tune = {**settings, "model__init_args__denoiser": "null", "model__init_args__scheduler": "null"}
    tune |= {"model__init_args__base": base, "data__init_args__val_store": "null"}
    run_stage(project.args("train", tmp_path / "tuned", **tune))
    checkpoint = tmp_path / "tuned/checkpoints/last.ckpt"
    of_tuned = {"model__init_args__checkpoint": checkpoint, "model__init_args__step_size": 100}
    steps = []
    for name, curvature in (("plain", "null"), ("fisher", project.curvature)):
        run_stage(unlearning(project, tmp_path / name, model__init_args__curvature=curvature, **of_tuned))
        changed, _ = load_tensors(tmp_path / name / "weights.safetensors")
        original = torch.load(checkpoint, weights_only=True)["state_dict"]
        steps.append({key: value - original[f"denoiser.{key}"] for key, value in changed.items()})
    plain, found = steps
    expected = load_curvature(project.curvature).inverse(plain, Damping(0.1, "mean"))
    for name, step in found.items():
        assert (step - expected[name]).norm() < 1e-2 * expected[name].norm(), name
    other = {"model__init_args__curvature": tmp_path / "other.safetensors", **of_tuned}
    tensors, kept = load_tensors(project.curvature)
    kept["digests"]["checkpoint"] = "another"
    save_tensors(tmp_path / "other.safetensors", "curvature", tensors, kept)
    assert_says(refused(unlearning(project, tmp_path / "other", **other)), "checkpoint of digest another")


def test_ekfac_of_other_weights_is_refused(project: Project, ekfac: Path, tmp_path: Path, refused: Refused) -> None:
    settings = {
        "model__init_args__curvature": ekfac / "curvature.safetensors",
        "model__init_args__weights": "cross_attention",
    }
    assert_says(refused(unlearning(project, tmp_path / "run", **settings)), "curvature", "attn2.to_q", "'cross_kv'")


def test_a_region_is_all_that_counts(project: Project, tmp_path: Path) -> None:
    image = np.zeros((32, 32), np.uint8)
    image[:16] = 255
    Image.fromarray(image).save(tmp_path / "region.png")
    plain, _ = weights(project, tmp_path / "plain", model__init_args__curvature="null")
    found, settings = weights(
        project, tmp_path / "run", model__init_args__curvature="null", model__init_args__region=tmp_path / "region.png"
    )
    assert any(not torch.equal(found[name], step) for name, step in plain.items())
    assert settings["digests"]["region"]
    task = Unlearning(
        str(project.checkpoint), str(project.store), str(project.queries), 0, region=str(tmp_path / "region.png")
    )
    assert task.region is not None
    assert task.region.tolist() == [[1.0] * 8] * 4 + [[0.0] * 8] * 4


def test_a_white_region_is_the_whole_query(project: Project, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "region.png")
    plain, _ = weights(project, tmp_path / "plain")
    found, _ = weights(project, tmp_path / "run", model__init_args__region=tmp_path / "region.png")
    for name, step in plain.items():
        torch.testing.assert_close(found[name], step, rtol=1e-3, atol=1e-8)


def test_a_place_counts_as_its_mean(tmp_path: Path) -> None:
    image = np.zeros((4, 6), np.uint8)
    image[:2, :3] = [[255, 255, 0], [255, 255, 0]]
    Image.fromarray(image).save(tmp_path / "region.png")
    assert read_region(tmp_path / "region.png", (2, 2)).tolist() == [[pytest.approx(2 / 3, abs=0.01), 0.0], [0.0, 0.0]]


def test_no_region(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no image")
    for name, message in [("black.png", "all black"), ("text.png", "not an image"), ("none.png", "no such file")]:
        with pytest.raises(UserError, match=rf"region .*{name}: .*{message}"):
            read_region(tmp_path / name, (8, 8))
