"""Networks and pipelines that are called otherwise, or were trained otherwise: each is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import make_pipeline

from datamodules.store import Field, Schema, Store, StoreWriter
from lightning_attr.errors import UserError
from lightning_attr.models import load

Copy = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    for family in ("sd1", "sdxl", "sd3", "flux", "pixart"):
        make_pipeline(family, root / family)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Copy:
    """A copy of a family's pipeline."""

    def copied(family: str) -> Path:
        return Path(shutil.copytree(made / family, tmp_path / "pipeline"))

    return copied


def put(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


NETWORKS: list[tuple[str, dict[str, Any], str]] = [
    ("sdxl", {"in_channels": 9}, "found 9 channels in and 4 out"),  # inpainting
    ("sdxl", {"time_cond_proj_dim": 8}, "found time_cond_proj_dim 8, expected none"),  # latent consistency
    ("sdxl", {"addition_time_embed_dim": -4}, "addition_time_embed_dim -4, expected a number from 1"),
    ("sdxl", {"addition_embed_type": "text_image"}, "found addition_embed_type 'text_image', expected none"),
    ("sd3", {"in_channels": 8}, "found 8 channels in and 4 out"),
    ("sd3", {"num_layers": 10**9}, "num_layers 1000000000, expected a number from 1 to 1000"),
    ("sd3", {"patch_size": "2"}, "patch_size '2', expected a number"),
    ("flux", {"guidance_embeds": False}, "found no guidance_embeds, expected true: schnell"),
    ("flux", {"in_channels": 96, "out_channels": 16}, "found 96 channels in, 16 out"),  # fill: 384 in and 64 out
    ("flux", {"num_single_layers": 10**9}, "num_single_layers 1000000000"),
    ("pixart", {"caption_channels": None}, "caption_channels None, expected a number"),
    ("pixart", {"out_channels": 12}, "found 4 channels in and 12 out"),
    ("pixart", {"norm_type": "layer_norm"}, "found norms with weights"),
    ("pixart", {"quantization_config": {"bits": 4}}, "found quantization_config, expected a model without"),
]


@pytest.mark.parametrize(("family", "entries", "message"), NETWORKS)
def test_networks_that_are_called_otherwise(copy: Copy, family: str, entries: dict[str, Any], message: str) -> None:
    folder = copy(family)
    config = next(folder.glob("[ut][nr][ea][tn]*/config.json"))
    put(config, **entries)
    with pytest.raises(UserError, match=message) as refused:
        load(folder)
    assert "\n" not in str(refused.value)


PIPELINES: list[tuple[str, dict[str, Any], str]] = [
    ("sd1", {"controlnet": ["diffusers", "ControlNetModel"]}, "found a pipeline with controlnet, expected none but"),
    ("sd1", {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}, "with image_encoder"),
    ("sd1", {"_class_name": "StableDiffusionInpaintPipeline"}, "StableDiffusionInpaintPipeline, expected Stable"),
    ("sdxl", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "InpaintPipeline, expected StableDiffusionXLPipe"),
    ("sdxl", {"requires_aesthetics_score": True}, "this is a refiner"),
    ("sdxl", {"_name_or_path": "stabilityai/sdxl-turbo"}, "comes from stabilityai/sdxl-turbo, .*distilled"),
    ("sd3", {"_name_or_path": "stabilityai/stable-diffusion-3.5-large-turbo"}, "expected none of a turbo model"),
    ("flux", {"_class_name": "FluxKontextPipeline"}, "found FluxKontextPipeline, expected FluxPipeline"),
    ("pixart", {"_class_name": "SanaPipeline"}, "expected PixArtAlphaPipeline or PixArtSigmaPipeline"),
]


@pytest.mark.parametrize(("family", "entries", "message"), PIPELINES)
def test_pipelines_that_make_images_otherwise(copy: Copy, family: str, entries: dict[str, Any], message: str) -> None:
    folder = copy(family)
    put(folder / "model_index.json", **entries)
    with pytest.raises(UserError, match=message) as refused:
        load(folder)
    assert str(refused.value).startswith(str(folder))


@pytest.mark.parametrize(
    ("family", "scheduler", "message"),
    [
        ("sd1", "LCMScheduler", "it is of distilled models"),
        ("sdxl", "TCDScheduler", "it is of distilled models"),
        ("sdxl", "FlowMatchEulerDiscreteScheduler", "expected one that noises by a schedule of betas"),
        ("sd3", "DDPMScheduler", "expected FlowMatchEulerDiscreteScheduler"),
        ("flux", "FlowMatchHeunDiscreteScheduler", "expected FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_schedulers_of_another_process(copy: Copy, family: str, scheduler: str, message: str) -> None:
    folder = copy(family)
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": scheduler}))
    with pytest.raises(UserError, match=message) as refused:
        load(folder)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart"])
def test_a_store_of_another_family_is_refused(made: Path, tmp_path: Path, family: str) -> None:
    """One condition may fit, but the others are missing."""
    model = load(made / family)
    width = model.denoiser.conditions["text"][1] or 1
    fields = {
        "latent": Field((1, 4, 8, 8), "float16", "latent"), "text": Field((1, 5, width), "float16", "condition"),
    }  # fmt: skip
    with StoreWriter(tmp_path / "a.lmdb", Schema(fields, {})) as writer:
        writer.finish()
    with pytest.raises(UserError, match=r"found latent, text, expected (pooled|mask) among them"):
        model.accepts(Store(tmp_path / "a.lmdb"))


def test_more_patches_than_positions(made: Path, tmp_path: Path) -> None:
    fields = {
        "latent": Field((1, 4, 8, 32), "float16", "latent"), "text": Field((1, 5, 16), "float16", "condition"),
        "pooled": Field((1, 14), "float16", "condition"),
    }  # fmt: skip
    with StoreWriter(tmp_path / "a.lmdb", Schema(fields, {})) as writer:
        writer.finish()
    with pytest.raises(UserError, match="found latents of 8 x 32, expected at most 16 x 16"):
        load(made / "sd3").accepts(Store(tmp_path / "a.lmdb"))


def test_text_encoders_are_not_loaded_before_they_are_needed(copy: Copy) -> None:
    """Those of Stable Diffusion 3 and FLUX take gigabytes, and most stages ask for no null condition."""
    folder = copy("sd3")
    for part in folder.glob("text_encoder*"):
        shutil.rmtree(part)
    model = load(folder).to("cpu")
    conditions = {"text": torch.zeros(1, 5, 16), "pooled": torch.zeros(1, 14)}
    model.generate(conditions, [1], size=(8, 8), steps=2, guidance=1.0)
    with pytest.raises(UserError, match=r"text_encoder/config\.json: no such file"):
        model.generate(conditions, [1], size=(8, 8), steps=2, guidance=2.0)
