"""Models in one file, as their first authors keep them: unpacked, they predict the same."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import make_pipeline
from torch import Tensor, nn

from lightning_attr.commands.prepare.model import main
from lightning_attr.encoders import AutoencoderKLEncoder, PipelineText
from lightning_attr.errors import UserError
from lightning_attr.models import load

#: What the layers of the tiny UNet are called, in order of what is tried first.
UNET = {
    r"^conv_in\.": "input_blocks.0.0.",
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"^down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
    r"^down_blocks\.1\.resnets\.0": "input_blocks.3.0",
    r"^down_blocks\.1\.attentions\.0": "input_blocks.3.1",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
    r"^up_blocks\.0\.resnets\.(\d)": r"output_blocks.\1.0",
    r"^up_blocks\.0\.attentions\.(\d)": r"output_blocks.\1.1",
    r"^up_blocks\.0\.upsamplers\.0\.conv": "output_blocks.1.2.conv",
    r"^up_blocks\.1\.resnets\.0": "output_blocks.2.0",
    r"^up_blocks\.1\.resnets\.1": "output_blocks.3.0",
}
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}

VAE = {
    r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)": r"encoder.down.\1.block.\2",
    r"^encoder\.down_blocks\.(\d)\.downsamplers\.0": r"encoder.down.\1.downsample",
    r"^decoder\.up_blocks\.0\.resnets\.(\d)": r"decoder.up.1.block.\1",
    r"^decoder\.up_blocks\.1\.resnets\.(\d)": r"decoder.up.0.block.\1",
    r"^decoder\.up_blocks\.0\.upsamplers\.0": "decoder.up.1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_([qkv])\.": r"mid.attn_1.\1.",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
}


def renamed(part: nn.Module, names: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    result = {}
    for name, value in part.state_dict().items():
        new = name
        for pattern, replacement in names.items():
            new = re.sub(pattern, replacement, new)
        if names is UNET and ".resnets." in name:
            inner = name.split(".")[-2]
            new = new.replace(inner, RESNET[inner])
        if names is VAE and re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new):
            value = value[:, :, None, None]
        result[prefix + new] = value.contiguous()
    return result


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("single") / "pipeline"
    return make_pipeline("sd1", folder), folder


@pytest.fixture
def weights(pipeline: tuple[Any, Path]) -> dict[str, Tensor]:
    made, _ = pipeline
    prefix = "cond_stage_model.transformer.text_model."
    text = {prefix + name.removeprefix("text_model."): value for name, value in made.text_encoder.state_dict().items()}
    return {
        **renamed(made.unet, UNET, "model.diffusion_model."),
        **renamed(made.vae, VAE, "first_stage_model."),
        **text,
    }


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
    with pytest.raises(UserError, match="found something there, expected a new folder"):
        unpacked(tmp_path / "b.safetensors", like, out)
