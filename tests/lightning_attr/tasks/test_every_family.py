"""Every family through the stages: a store is made with its encoders, queries are sampled, and it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_adapters import keys, lay_over, save_diffusers
from tiny_pipelines import WORDS, make_pipeline
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.any_source import main as prepare
from lightning_attr.commands.prepare.queries import main as prepare_queries
from lightning_attr.models import load
from lightning_attr.models.spec import write_spec
from lightning_attr.tasks import virtual_steps

PROMPTS = ["a cat on the mat", "red dog"]


def images(folder: Path) -> Path:
    """Four images that are no squares, with captions."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(4):
        shape = (20, 24 + 4 * number, 3)
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(PROMPTS[number % 2])
    return folder


def stage(root: Path, verb: str, name: str, model: dict[str, Any], **config: Any) -> None:
    """Run a stage in a folder of its own."""
    trainer = {
        "default_root_dir": str(root / name), "accelerator": "cpu", "enable_progress_bar": False, "logger": False,
        **config.pop("trainer", {}),
    }  # fmt: skip
    (root / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": trainer, "model": model, **config}))
    run_stage([verb, "-c", str(root / f"{name}.yaml")])


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("sd1", "sd2", "sd3", "flux", "pixart")]


@pytest.mark.parametrize("family", ["sdxl", *SLOW])
def test_a_family_through_the_stages(tmp_path: Path, family: str) -> None:
    pipeline = make_pipeline(family, tmp_path / "pipeline")
    model, store = str(tmp_path / "pipeline"), str(tmp_path / "train.lmdb")
    source = str(images(tmp_path / "images"))
    prepare([source, "--out", store, "--model", model, "--size", "16", "--workers", "0"])
    if family == "sdxl":
        sizes = [Store(store).read("time_ids", [place])[0, 0].tolist() for place in range(4)]
        crops = [2, 3, 5, 6]  # of widths 24, 28, 32 and 36, made smaller by 16 / 20
        expected = [[20, 24 + 4 * place, 0, crop, 16, 16] for place, crop in enumerate(crops)]
        assert sizes == expected

    sampled = {"checkpoint": model, "store": store, "prompts": PROMPTS, "steps": 3, "guidance": 3.0, "seed": 5}
    stage(tmp_path, "predict", "sample", {"class_path": "lightning_attr.tasks.Sampler", "init_args": sampled})
    queries = Store(str(tmp_path / "sample/queries.lmdb"))
    load(model).accepts(queries)
    extra = {"use_resolution_binning": False, "clean_caption": False} if family == "pixart" else {}
    expected_latents = pipeline(
        PROMPTS, height=16, width=16, num_inference_steps=3, guidance_scale=3.0, output_type="latent",
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)], **extra,
    ).images  # fmt: skip
    if family == "flux":
        expected_latents = pipeline._unpack_latents(expected_latents, 16, 16, 2)
    found = torch.from_numpy(queries.read("latent", [0, 1])[:, 0].copy())
    torch.testing.assert_close(found, expected_latents, rtol=1e-4, atol=1e-4)

    training = {
        "base": {"model": model, "adapter": {"kind": "full"}}, "learning_rate": 1e-3, "caption_dropout": 0.5,
        "validation": {"timesteps": 1},
    }  # fmt: skip
    data = {"class_path": "datamodules.LatentDataModule", "init_args": {"store": store, "batch_size": 4}}
    task = {"class_path": "lightning_attr.tasks.LatentDiffusion", "init_args": training}
    stage(tmp_path, "fit", "train", task, data=data, trainer={"max_steps": 2})
    trained, before = load(tmp_path / "train/checkpoints/last.ckpt"), load(model)
    assert type(trained.denoiser) is type(before.denoiser)
    assert trained.null.keys() == before.null.keys()
    assert all(torch.equal(trained.null[name], before.null[name]) for name in before.null)
    weights = dict(before.network.named_parameters())
    moved = [name for name, weight in trained.network.named_parameters() if not torch.equal(weight, weights[name])]
    assert {*before.select("all")} <= {*moved}


def adapted(root: Path, family: str) -> None:
    """A pipeline with a LoRA, ten images that differ, and the same ones as queries."""
    pipeline = make_pipeline(family, root / "pipeline")
    part = "transformer" if family in ("sd3", "flux", "pixart") else "unet"
    network = getattr(pipeline, part)
    lay_over(network)
    write_spec(root / "model.yaml", root / "pipeline", save_diffusers(root / "lora", keys(**{part: network})))
    generator = np.random.default_rng(0)
    (root / "images").mkdir()
    for number in range(10):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((16, 16), Image.Resampling.BICUBIC).save(root / f"images/{number}.png")
        (root / f"images/{number}.txt").write_text(" ".join(generator.choice(WORDS, 3)))
    images, store = str(root / "images"), str(root / "train.lmdb")
    prepare([images, "--out", store, "--model", str(root / "model.yaml"), "--size", "16", "--workers", "0"])
    prepare_queries([images, "--out", str(root / "queries.lmdb"), "--encoders_from", store])


def scores_by(root: Path, method: str, *options: str) -> Tensor:
    """The scores of a shipped method on the weights of the adapter, [10, 10]."""
    name = method.removesuffix(".yaml")
    attribution = {"checkpoints": [str(root / "model.yaml")], "queries": str(root / "queries.lmdb")}
    config = {
        "vars": {"run": str(root), "timesteps": 4},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "logger": False},
        "model": {"class_path": "lightning_attr.tasks.Attribution", "init_args": attribution},
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(root / "train.lmdb"), "batch_size": 10},
        },
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    run_stage(["predict", "-c", str(root / f"{name}.yaml"), "-c", f"configs/methods/{method}", *options])
    return Scores.load(root / "attribute" / name / "scores.safetensors").scores


@pytest.mark.parametrize(
    "family",
    ["pixart", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd1", "sd2", "sdxl", "sd3", "flux"))],
)
def test_an_image_of_the_training_set_as_the_query(tmp_path: Path, family: str) -> None:
    """It comes first by a cosine; before it by influence may come what has more influence on itself."""
    adapted(tmp_path, family)
    fitted = {"checkpoint": str(tmp_path / "model.yaml"), "kind": "ekfac"}
    data = {"store": str(tmp_path / "train.lmdb"), "batch_size": 10, "order": "stored"}
    stage(
        tmp_path, "fit", "curvature_ekfac", {"class_path": "lightning_attr.tasks.Curvature", "init_args": fitted},
        data={"class_path": "datamodules.LatentDataModule", "init_args": data}, trainer={"max_epochs": 8},
    )  # fmt: skip
    themselves = list(range(10))
    weights = "--model.init_args.method.init_args.weights=adapter"
    assert scores_by(tmp_path, "gradient_cosine.yaml", weights).argmax(1).tolist() == themselves
    influence = scores_by(tmp_path, "adapter.yaml")
    own = influence.diagonal()
    assert (own > 0).all()
    assert (own[influence.argmax(1)] >= own).all()
    normalised = influence / own.sqrt()  # and by the query's own, which changes no order
    assert normalised.argmax(1).tolist() == themselves


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux", "sd1", "sd2", "sdxl", "sd3", "pixart"])
def test_virtual_steps_of_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Every network has what they need; and an image of the training set has influence on itself."""
    monkeypatch.setattr(virtual_steps, "BATCHES", 2)
    adapted(tmp_path, family)
    steps = {
        "checkpoint": str(tmp_path / "model.yaml"), "queries": str(tmp_path / "queries.lmdb"),
        "learning_rate": 1e-6, "draws": {"timesteps": 4},
    }  # fmt: skip
    data = {"store": str(tmp_path / "train.lmdb"), "batch_size": 5}
    stage(
        tmp_path, "fit", "virtual_steps", {"class_path": "lightning_attr.tasks.VirtualSteps", "init_args": steps},
        data={"class_path": "datamodules.LatentDataModule", "init_args": data}, trainer={"max_steps": 2},
    )  # fmt: skip
    scores = scores_by(tmp_path, "default.yaml")
    assert (scores.diagonal() > 0).all()
    assert (scores.std(1) > 0).all()
