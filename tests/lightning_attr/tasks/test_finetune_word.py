"""A style with a word of its own, and images of the base's world beside it: from kohya's folders to samples."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from image_sources import items, write_folder
from miniature import Project
from stopped import Moment
from test_resume import assert_same, stopped_then_resumed

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.checkpoint_files import read_checkpoint, with_digests
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.any_source import main as prepare
from lightning_attr.encoders import store_text_encoder
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.pack import unpack
from lightning_attr.ground_truth.packing import collect
from lightning_attr.losses import sample_losses
from lightning_attr.models import Model, load
from lightning_attr.models.finetune import Base, Trained
from lightning_attr.models.new_word import OFFSET
from lightning_attr.noise import Draws
from lightning_attr.tasks import LatentDiffusion

Config = dict[str, Any]

#: Two exemplars and eight images of the base's world, shown as often.
FOLDERS = {"4_style": 2, "1_prior": 8}


class Style:
    """A base, a store of its style, and the configs of fine-tunings."""

    def __init__(self, root: Path, stores: Project) -> None:
        self.root = root
        run_stage(stores.args("train", root / "base"))
        self.base = last(root / "base")
        content = items(10)
        for place, (item, folder) in enumerate(
            zip(content, [name for name, count in FOLDERS.items() for _ in range(count)], strict=True)
        ):
            item.name = f"{folder}/{item.name}"
            item.caption = f"star by Sks {place}" if folder == "4_style" else f"a star in the night {place}"
        write_folder(root / "images", content)
        words = ["--out", str(root / "style.lmdb"), "--encoders_from", str(stores.store), "--size", "32"]
        prepare([str(root / "images"), *words, "--workers", "0"])
        self.store = Store(root / "style.lmdb")

    def config(self, run: Path, adapter: Config, trainer: Config | None = None) -> Config:
        init_args = {
            "base": {"model": str(self.base), "adapter": adapter},
            "learning_rate": 1e-2,
            "caption_dropout": 0.0,
            "validation": {"timesteps": 2},
        }
        return {
            "trainer": {
                "default_root_dir": str(run),
                "accelerator": "cpu",
                "max_steps": 8,
                "logger": False,
                "callbacks": [{"class_path": "callbacks.EMA", "init_args": {"decay": 0.5}}],
                **(trainer or {}),
            },
            "checkpoint": {"every_n_train_steps": 2},
            "model": {"class_path": "lightning_attr.tasks.LatentDiffusion", "init_args": init_args},
            "data": {
                "class_path": "datamodules.LatentDataModule",
                "init_args": {"store": str(self.root / "style.lmdb"), "batch_size": 4},
            },
        }


def written(verb: str, config: Config) -> list[str]:
    folder = Path(config["trainer"]["default_root_dir"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return [verb, "-c", str(path)]


def run(verb: str, config: Config) -> Path:
    run_stage(written(verb, config))
    return Path(config["trainer"]["default_root_dir"])


def last(folder: Path) -> Path:
    return folder / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def style(stores: Project, tmp_path_factory: pytest.TempPathFactory) -> Style:
    return Style(tmp_path_factory.mktemp("style"), stores)


@pytest.fixture(scope="module")
def tuned(style: Style) -> Path:
    return run("fit", style.config(style.root / "tuned", LORA))


LORA = {"rank": 2, "token": "sks"}


def predicted(model: Model, store: Store, *texts: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 8, 8, generator=generator).expand(len(texts), 4, 8, 8)
    conditions = store_text_encoder(store).encode(list(texts))
    return model.predict(latent, torch.full([len(texts)], 500), conditions)


def without_offset(model: Model) -> Model:
    other = copy.deepcopy(model.network)
    other.get_parameter(OFFSET).data.zero_()
    return model.over(other)


def test_each_half_of_the_showings_is_of_the_style_and_of_the_base(
    style: Style, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[int, Counter[str]] = {}
    step = LatentDiffusion.training_step

    def watched(task: LatentDiffusion, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        keys = [str(style.store.meta(int(place)).key) for place in style.store.positions(batch["id"].numpy())]
        shown.setdefault(task.current_epoch, Counter()).update(key.split("/")[0] for key in keys)
        return step(task, batch, index)

    monkeypatch.setattr(LatentDiffusion, "training_step", watched)
    run("fit", style.config(tmp_path / "run", {"kind": "custom_diffusion"}))
    assert shown == {epoch: Counter({"4_style": 8, "1_prior": 8}) for epoch in range(2)}


@pytest.mark.parametrize("kind", ["lora", "custom_diffusion"])
def test_the_word_is_trained_kept_and_loaded(style: Style, tuned: Path, tmp_path: Path, kind: str) -> None:
    folder = tuned if kind == "lora" else run("fit", style.config(tmp_path / "run", {"kind": kind, "token": "sks"}))
    checkpoint = read_checkpoint(last(folder))
    names = checkpoint["state_dict"].keys()
    assert f"denoiser.{OFFSET}" in names
    assert names == checkpoint["current_model_state"].keys()
    model = load(last(folder))
    assert torch.equal(model.weights[OFFSET], checkpoint["state_dict"][f"denoiser.{OFFSET}"])
    assert model.weights[OFFSET].abs().max() > 1e-3
    assert OFFSET in model.denoiser.adapter
    assert OFFSET not in model.select(None)
    texts = ("star by sks", "by a star")
    found, other = (predicted(each, style.store, *texts) for each in (model, without_offset(model)))
    assert not torch.allclose(found[0], other[0], atol=1e-5)
    assert torch.equal(found[1], other[1])
    assert not list(folder.glob("*.safetensors"))  # for diffusers, which has no such word


@pytest.mark.slow
def test_the_loss_of_the_style_falls_further_with_the_word(style: Style, tmp_path: Path) -> None:
    """What else is trained has little to do with it: how one layer looks at the caption."""
    small = {"rank": 1, "targets": r"attn2\.to_q$"}
    batch = whole_samples(style.store, (style.store.weights == 4).nonzero()[0])

    def fall(name: str, adapter: Config) -> float:
        config = style.config(tmp_path / name, adapter, {"max_steps": 40})
        config["model"]["init_args"]["learning_rate"] = 0.3
        model = load(last(run("fit", config)))
        before, after = (
            float(sample_losses(each, batch, Draws(timesteps=20)).mean()) for each in (load(style.base), model)
        )
        return before - after

    with_word, without = fall("with", {**small, "token": "SKS"}), fall("without", small)
    assert with_word > 2 * max(without, 1e-4)


def test_a_stopped_run_ends_with_the_same_bits(style: Style, tuned: Path, tmp_path: Path) -> None:
    run("fit", style.config(tmp_path / "run", LORA, {"max_steps": 3}))
    run("fit", style.config(tmp_path / "run", LORA))
    assert_same(last(tmp_path / "run"), last(tuned))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(style: Style, tuned: Path, tmp_path: Path) -> None:
    args = written("fit", style.config(tmp_path / "run", LORA))
    stopped_then_resumed(args, tmp_path / "log", Moment("lightning_attr.tasks:LatentDiffusion.training_step", 6))
    assert_same(last(tmp_path / "run"), last(tuned))


def sampled(style: Style, checkpoint: Path, folder: Path) -> Path:
    own = {"checkpoint": str(checkpoint), "store": str(style.store.path), "steps": 2, "seed": 1}
    prompts = ["star by sks", "star by a"]
    model = {"class_path": "lightning_attr.tasks.Sampler", "init_args": {**own, "prompts": prompts}}
    trainer = {"default_root_dir": str(folder), "accelerator": "cpu", "logger": False}
    return run("predict", {"trainer": trainer, "model": model}) / "queries.lmdb"


def test_samples_have_the_word(style: Style, tuned: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(last(tuned))
    checkpoint["state_dict"][f"denoiser.{OFFSET}"].zero_()
    torch.save(with_digests(checkpoint), tmp_path / "without.ckpt")
    queries = (sampled(style, last(tuned), tmp_path / "a"), sampled(style, tmp_path / "without.ckpt", tmp_path / "b"))
    found, other = (Store(path).read("latent", [0, 1]) for path in queries)
    assert abs(found[0] - other[0]).max() > 1e-3
    assert (found[1] == other[1]).all()


@pytest.mark.slow
def test_retrained_alone_and_in_a_group_and_packed(style: Style, tuned: Path, tmp_path: Path) -> None:
    queries = sampled(style, last(tuned), tmp_path / "sample")

    def member(folder: Path, seed: int) -> Config:
        config = style.config(folder, LORA)
        del config["trainer"]["callbacks"]
        own = {"original": str(last(tuned)), "queries": str(queries), "method": "subset", "seed": seed}
        config["model"]["class_path"] = "lightning_attr.tasks.Retraining"
        config["model"]["init_args"] |= {**own, "evaluation": {"timesteps": 2}}
        config["data"]["init_args"]["subset"] = {"fraction": 0.5, "seed": seed}
        return config

    alone = [run("fit", member(tmp_path / f"alone/{seed}", seed)) for seed in (1, 2)]
    members, together = [member(tmp_path, seed) for seed in (1, 2)], [tmp_path / f"together/{seed}" for seed in (1, 2)]
    group = member(tmp_path / "group", 1)
    models, sources = ([each[part] for each in members] for part in ("model", "data"))
    arguments = {"members": models, "folders": list(map(str, together))}
    group["model"] = {"class_path": "lightning_attr.tasks.GroupedRetraining", "init_args": arguments}
    group["data"] = {"class_path": "datamodules.GroupedLatents", "init_args": {"members": sources}}
    run("fit", group)
    for one, other in zip(alone, together, strict=True):
        ours, theirs = load(last(one)), load(last(other))
        assert ours.configs == theirs.configs
        assert ours.weights.keys() == theirs.weights.keys()
        for name, weight in ours.weights.items():
            torch.testing.assert_close(weight, theirs.weights[name], rtol=1e-3, atol=1e-4)
        files = [load_tensors(folder / "retraining.safetensors", "retraining")[0] for folder in (one, other)]
        torch.testing.assert_close(files[0]["retrained_losses"], files[1]["retrained_losses"], rtol=1e-3, atol=1e-4)
    pack = collect(alone, str(style.store.path), str(last(tuned)), str(queries), {})
    unpack(pack, tmp_path / "unpacked")
    texts = ("star by sks", "by a star")
    original = predicted(load(tmp_path / "unpacked/original.ckpt"), style.store, *texts)
    assert torch.equal(original, predicted(load(last(tuned)), style.store, *texts))


@pytest.mark.parametrize("word", ["skss", "8"])  # the second is in captions, but beyond what of them is encoded
def test_a_word_that_no_caption_has(style: Style, tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match=rf"token: found '{word}' in no caption of .*style\.lmdb"):
        run("fit", style.config(tmp_path / "run", {"token": word}))


def test_a_checkpoint_of_another_word_does_not_go_on(style: Style, tuned: Path) -> None:
    task = LatentDiffusion(base=Base(str(style.base), Trained(rank=2, token="star")))
    with pytest.raises(UserError, match=r"base\.adapter: found .*'sks'.*, expected .*'star'"):
        task.on_load_checkpoint(read_checkpoint(last(tuned)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"texts": {"class": "CLIPText"}}, "CLIPText"),
        (
            {"texts": {"class": "HashedWords", "tokens": 6, "dim": 8, "seed": 0}},
            "found states of 8 features, expected 16",
        ),
        ({"texts": None}, "text encoder: found None"),
        ({}, "expected settings of an adapter: KeyError: 'texts'"),
    ],
)
def test_spoiled_checkpoints(style: Style, tuned: Path, tmp_path: Path, changed: Config, message: str) -> None:
    checkpoint = read_checkpoint(last(tuned))
    del checkpoint["trained_model"]["base"]["texts"]
    checkpoint["trained_model"]["base"] |= changed
    torch.save(with_digests(checkpoint), tmp_path / "spoiled.ckpt")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "spoiled.ckpt")
