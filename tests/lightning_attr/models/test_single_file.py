"""Models in one file, as their first authors keep them: unpacked, they predict the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from original_layouts import LAYOUTS, UNET, renamed, sd1
from safetensors.torch import save_file
from tiny_pipelines import make_pipeline
from torch import Tensor

from lightning_attr.commands.prepare.model import main
from lightning_attr.encoders import AutoencoderKLEncoder, PipelineText
from lightning_attr.errors import UserError
from lightning_attr.models import load


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("single") / "pipeline"
    return make_pipeline("sd1", folder), folder


@pytest.fixture
def weights(pipeline: tuple[Any, Path]) -> dict[str, Tensor]:
    return sd1(pipeline[0])


@pytest.fixture
def like(pipeline: tuple[Any, Path], tmp_path: Path) -> Path:
    """A folder of the same configs and other weights."""
    made, _ = pipeline
    made.save_pretrained(tmp_path / "like")
    for path in (tmp_path / "like").rglob("*.safetensors"):
        path.unlink()
    return tmp_path / "like"


def unpacked(file: Path, like: Path, out: Path) -> Path:
    main([str(file), "--like", str(like), "--out", str(out)])
    return out


def test_a_whole_model(pipeline: tuple[Any, Path], weights: dict[str, Tensor], like: Path, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    out = unpacked(tmp_path / "model.safetensors", like, tmp_path / "made")
    found, expected = load(out).network.state_dict(), load(pipeline[1]).network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    source = str(pipeline[1])
    assert PipelineText(str(out)).weights == PipelineText(source).weights
    assert AutoencoderKLEncoder(str(out), pipeline=True).weights == AutoencoderKLEncoder(source, pipeline=True).weights
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "like", "made"}


def test_a_network_alone(pipeline: tuple[Any, Path], tmp_path: Path) -> None:
    made, folder = pipeline
    changed = {name: value + 1 for name, value in renamed(made.unet, UNET, "model.diffusion_model.").items()}
    save_file(changed, tmp_path / "model.safetensors")
    shutil.copytree(folder, tmp_path / "like")
    out = unpacked(tmp_path / "model.safetensors", tmp_path / "like", tmp_path / "made")
    found, before = load(out).network.state_dict(), load(folder).network.state_dict()
    assert all(torch.equal(found[name], value + 1) for name, value in before.items())
    assert PipelineText(str(out)).weights == PipelineText(str(folder)).weights


def test_what_lacks_weights_is_refused(weights: dict[str, Tensor], like: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "model.safetensors", tmp_path / "made"
    for missing in ("model.diffusion_model.out.0.weight", "first_stage_model.decoder.norm_out.bias"):
        save_file({name: value for name, value in weights.items() if name != missing}, file)
        with pytest.raises(UserError, match=r"model\.safetensors: found no"):
            unpacked(file, like, out)
    for part in ("first_stage_model.", "cond_stage_model."):
        save_file({name: value for name, value in weights.items() if not name.startswith(part)}, file)
        with pytest.raises(UserError, match=r"model\.safetensors: found no UNet2DConditionModel like"):
            unpacked(file, like, out)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "like"}


def test_what_is_no_model_in_a_file(pipeline: tuple[Any, Path], tmp_path: Path) -> None:
    like, out = pipeline[1], tmp_path / "made"
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="could run code"):
        unpacked(tmp_path / "a.ckpt", like, out)
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"expected a \.safetensors file"):
        unpacked(tmp_path / "a.safetensors", like, out)
    save_file({"other": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"b\.safetensors: found no UNet2DConditionModel like"):
        unpacked(tmp_path / "b.safetensors", like, out)
    with pytest.raises(UserError, match=r"prepare model .*b\.safetensors --like FOLDER --out .*/b"):
        load(tmp_path / "b.safetensors")
    out.mkdir()
    with pytest.raises(UserError, match="found something there, expected a new place"):
        unpacked(tmp_path / "b.safetensors", like, out)


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sd3"])
def test_other_families(family: str, tmp_path: Path) -> None:
    made = make_pipeline(family, tmp_path / "pipeline")
    with torch.no_grad():  # of CLIP's projection these files keep nothing
        if family == "sd3":
            made.text_encoder.text_projection.weight.copy_(torch.eye(8))
            made.save_pretrained(tmp_path / "pipeline")
    save_file(LAYOUTS[family](made), tmp_path / "model.safetensors")
    shutil.copytree(tmp_path / "pipeline", tmp_path / "like", ignore=shutil.ignore_patterns("*.safetensors"))
    out = unpacked(tmp_path / "model.safetensors", tmp_path / "like", tmp_path / "made")
    found, expected = load(out).network.state_dict(), load(tmp_path / "pipeline").network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    source = str(tmp_path / "pipeline")
    assert AutoencoderKLEncoder(str(out), pipeline=True).weights == AutoencoderKLEncoder(source, pipeline=True).weights
    ours, theirs = (
        PipelineText(each, 8 if family == "sd3" else None).encode(["red dog"]) for each in (str(out), source)
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_family_without_a_converter(tmp_path: Path) -> None:
    make_pipeline("pixart", tmp_path / "like")
    save_file({"x_embedder.proj.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=r"a\.safetensors: found a model in one file for PixArtTransformer2DModel, which"
    ):
        unpacked(tmp_path / "a.safetensors", tmp_path / "like", tmp_path / "made")
