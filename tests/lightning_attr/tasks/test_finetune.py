"""Fine-tuning: what is trained over a base is kept, exported, resumed, retrained, packed and attributed."""

from __future__ import annotations

import copy
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from tiny_finetunes import FineTune, write_store
from torch import Tensor

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.artifacts.scores import load_scores
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.encode import pipeline_of
from lightning_attr.commands.sweep.command import main as sweep
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.evaluate import evaluate
from lightning_attr.ground_truth.pack import Pack, unpack
from lightning_attr.ground_truth.packing import collect
from lightning_attr.losses import sample_losses
from lightning_attr.methods import Learned, attribute
from lightning_attr.models import Model, load
from lightning_attr.models.finetune import Base, Trained
from lightning_attr.models.spec import write_spec
from lightning_attr.noise import Draws
from lightning_attr.tasks import (
    Curvature,
    LatentDiffusion,
    MirroredUnlearning,
    Retraining,
    Unlearning,
    VirtualSteps,
)

Config = dict[str, Any]

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> FineTune:
    """A fine-tuning that is finished, in ``train``, with an average."""
    made = FineTune(tmp_path_factory.mktemp("tuned"))
    run("fit", made.train(made.root / "train"))
    return made


def run(verb: str, config: Config) -> Path:
    folder = Path(config["trainer"]["default_root_dir"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    run_stage([verb, "-c", str(path)])
    return folder


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent, text = (torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (8, 8)))
    return latent, torch.tensor([3, 900]), text


def predicted(model: Model) -> Tensor:
    latent, at, text = inputs()
    return model.predict(latent, at, {"text": text})


def test_the_checkpoint_holds_the_adapter_alone(tuned: FineTune) -> None:
    checkpoint = read_checkpoint(last(tuned.root / "train"))
    names = {name for part in ("state_dict", "current_model_state") for name in checkpoint[part]}
    assert all(".lora_" in name for name in names)
    assert len(names) == 2 * 4 * 8  # A and B of four layers in each attention
    model, base = load(last(tuned.root / "train")), load(tuned.root / "base")
    assert model.chosen(None) == "adapter"
    assert not torch.allclose(predicted(model), predicted(base), atol=1e-4)
    assert model.digest != base.digest
    assert checkpoint["trained_model"]["base"]["digest"] == base.digest
    assert pipeline_of(last(tuned.root / "train")) == tuned.root / "base"
    assert str(tuned.root) not in repr({key: checkpoint[key] for key in ("trained_model", "state_dict")})


def test_the_exported_lora_gives_the_same_output(tuned: FineTune, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tuned.root / "base")
    pipeline.load_lora_weights(tuned.root / "train")
    latent, at, text = inputs()
    expected = predicted(load(last(tuned.root / "train")))
    assert torch.equal(pipeline.unet(latent, at, text).sample, expected)
    write_spec(tmp_path / "model.yaml", tuned.root / "base", tuned.root / "train/pytorch_lora_weights.safetensors")
    assert torch.equal(predicted(load(tmp_path / "model.yaml")), expected)


def state(folder: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(last(folder))
    moments = checkpoint["optimizer_states"][0]["state"]
    parts = {part: checkpoint[part] for part in ("state_dict", "current_model_state") if part in checkpoint}
    return {**parts, **{f"moments {place}": value for place, value in moments.items()}}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        part.keys() == other[name].keys() and all(torch.equal(part[key], other[name][key]) for key in part)
        for name, part in one.items()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"accumulate_grad_batches": 2, "callbacks": None}, marks=pytest.mark.slow),
        pytest.param({"check_val_every_n_epoch": None, "val_check_interval": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(settings: Config, tuned: FineTune, tmp_path: Path) -> None:
    whole = run("fit", tuned.train(tmp_path / "whole", settings)) if settings else tuned.root / "train"
    parts = run("fit", tuned.train(tmp_path / "parts", {**settings, "max_steps": 3}))
    assert not same(state(parts), state(whole))
    assert same(state(run("fit", tuned.train(tmp_path / "parts", settings))), state(whole))


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tuned: FineTune, tmp_path: Path) -> None:
    again = run("fit", tuned.train(tmp_path / "again", gradient_checkpointing=True))
    for name, weight in load(last(again)).weights.items():
        torch.testing.assert_close(weight, load(last(tuned.root / "train")).weights[name])


@pytest.mark.slow
def test_mixed_precision(tuned: FineTune, tmp_path: Path) -> None:
    mixed = load(last(run("fit", tuned.train(tmp_path / "mixed", {"precision": "bf16-mixed"})))).weights
    plain = load(last(tuned.root / "train")).weights
    assert all(weight.dtype == torch.float32 for weight in mixed.values())
    both = [torch.cat([weight.flatten() for weight in weights.values()]) for weights in (mixed, plain)]
    assert not torch.equal(*both)
    assert torch.cosine_similarity(*both, dim=0) > 0.9


def test_custom_diffusion(tuned: FineTune, tmp_path: Path) -> None:
    base = {"model": str(tuned.root / "base"), "adapter": {"kind": "custom_diffusion"}}
    folder = run("fit", tuned.train(tmp_path / "run", base=base))
    model = load(last(folder))
    assert model.select(None).keys() == load(tuned.root / "base").select("cross_kv").keys()
    assert len(read_checkpoint(last(folder))["state_dict"]) == 8
    pipeline = StableDiffusionPipeline.from_pretrained(tuned.root / "base")
    name = "pytorch_custom_diffusion_weights.safetensors"
    pipeline.unet.load_attn_procs(folder, weight_name=name, _pipeline=pipeline)
    latent, at, text = inputs()
    torch.testing.assert_close(pipeline.unet(latent, at, text).sample, predicted(model))
    write_spec(tmp_path / "model.yaml", tuned.root / "base", folder)
    assert torch.equal(predicted(load(tmp_path / "model.yaml")), predicted(model))


def test_all_weights(tuned: FineTune, tmp_path: Path) -> None:
    base = {"model": str(tuned.root / "base"), "adapter": {"kind": "full"}}
    folder = run("fit", tuned.train(tmp_path / "run", base=base))
    model, before = load(last(folder)), load(tuned.root / "base")
    assert (model.base, model.chosen(None)) == ("", "cross_kv")
    assert model.made_from["base"] == before.digest
    changed = [not torch.equal(value, before.weights[name]) for name, value in model.weights.items()]
    assert len(changed) == len(before.weights)
    assert sum(changed) > 0.9 * len(changed)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == []
    other = Store(str(write_store(tmp_path / "other.lmdb", tuned.root / "base", 3)))
    with pytest.raises(UserError, match="made from store of digest"):
        model.was_trained_on(other)
    write_spec(tmp_path / "model.yaml", last(folder), tuned.root / "train")
    over = load(tmp_path / "model.yaml")
    over.was_trained_on(other)  # as far as is known
    assert over.made_from == {"encoders": model.made_from["encoders"], "base": model.digest}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"denoiser": {}}, "model.denoiser: found a config, expected a config, or model.base alone"),
        ({"scheduler": {"beta_start": 0.1}}, "or model.base alone"),
        ({"base": None}, "model.denoiser: found none"),
        ({"base": {"adapter": {"targets": "nowhere"}}}, "targets: found no layer for 'nowhere'"),
        ({"base": {"adapter": {"targets": "("}}}, "targets: not a regular expression"),
        ({"base": {"adapter": {"rank": 0}}}, "rank: found 0"),
        ({"base": {"adapter": {"alpha": -1.0}}}, "alpha: found -1.0"),
        ({"base": {"adapter": {"text_encoder": True}}}, "the store holds texts as the text encoder was"),
        ({"base": {"adapter": {"token": "cat"}}}, "token: found texts of CLIPText, expected those of HashedWords"),
        ({"base": {"adapter": {"token": "a cat"}}}, "token: found 'a cat', expected one word"),
        ({"base": {"adapter": {"kind": "full", "token": "cat"}}}, "token: found a word with all weights"),
        ({"base": {"model": "CHECKPOINT"}}, "with an adapter, expected a base without"),
    ],
)
def test_what_is_refused(settings: Config, message: str, tuned: FineTune, tmp_path: Path) -> None:
    config = tuned.train(tmp_path / "run")
    own = config["model"]["init_args"]
    base = {**own["base"], **(settings.get("base") or {})}
    if base["model"] == "CHECKPOINT":
        base["model"] = str(last(tuned.root / "train"))
    config["model"]["init_args"] = {**own, **settings, "base": None if settings.get("base", {}) is None else base}
    with pytest.raises(UserError, match=message):
        run("fit", config)


def test_a_base_that_was_moved_or_changed(tuned: FineTune, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    shutil.copytree(tuned.root / "base", tmp_path / "pipeline")
    config = tuned.train(tmp_path / "run", {"max_steps": 1}, base={"model": str(tmp_path / "pipeline")})
    expected = predicted(load(last(run("fit", config))))
    checkpoint.parent.mkdir()
    shutil.copy(last(tmp_path / "run"), checkpoint)
    (tmp_path / "pipeline").rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"found no base at .*pipeline, expected the model .* put it, or a link to it, at"
    ):
        load(checkpoint)
    (checkpoint.parent / "base").symlink_to(tmp_path / "moved")
    assert torch.equal(predicted(load(checkpoint)), expected)
    (tmp_path / "moved/unet/notes.txt").write_text("changed")
    with pytest.raises(UserError, match=r"base .*: found digest \w+, expected \w+"):
        load(checkpoint)


NAME = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.default.weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": 3}, r"trained_model\.base: found int, expected a mapping"),
        ({"base": {"adapter": {}}}, r"found digest \w+, expected None"),
        ({"adapter": 3}, r"trained_model\.base\.adapter: expected settings"),
        ({"adapter": {"kind": "lokr"}}, "kind: found 'lokr'"),
        ({"adapter": {"kind": "full"}}, "found a checkpoint of all weights with a base"),
        ({"adapter": {"kind": "custom_diffusion"}}, "found .*to_k.weight missing, expected"),
        ({"adapter": {"rank": "three"}}, "adapter"),
        ({"weights": {NAME: torch.ones(3, 9)}}, "to_k: found a LoRA of 8 x 9, expected 8 x 8"),
        ({"weights": {NAME: torch.full((3, 8), torch.nan)}}, "is not finite"),
        ({"weights": {NAME: torch.ones(3, 8, dtype=torch.int64)}}, "found a tensor of torch.int64"),
        ({"weights": {NAME: None}}, "found .*to_k.lora_B.default.weight .*, expected none"),
        ({"weights": {"denoiser.other": torch.ones(2)}}, r"found other \(2,\), expected none"),
    ],
)
def test_spoiled_checkpoints(changed: Config, message: str, tuned: FineTune, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(last(tuned.root / "train"))
    record, weights = checkpoint["trained_model"], checkpoint["state_dict"]
    record["base"] = changed.get("base", record["base"])
    if "adapter" in changed:
        record["base"]["adapter"] = changed["adapter"]
    weights |= changed.get("weights", {})
    kept = {name: value for name, value in weights.items() if value is not None}
    torch.save({"state_dict": kept, "trained_model": record, "base": checkpoint["base"]}, tmp_path / "spoiled.ckpt")
    with pytest.raises(UserError, match=rf"^checkpoint .*spoiled\.ckpt: .*{message}"):
        load(tmp_path / "spoiled.ckpt")


@pytest.fixture(scope="module")
def sampled(tuned: FineTune) -> Path:
    settings = {"checkpoint": str(last(tuned.root / "train")), "store": str(tuned.store), "prompts": ["a cat", "a mat"]}
    folder = run(
        "predict",
        {
            "trainer": {"default_root_dir": str(tuned.root / "sample"), "accelerator": "cpu", "logger": False},
            "model": {"class_path": "lightning_attr.tasks.Sampler", "init_args": {**settings, "steps": 2}},
        },
    )
    return folder / "queries.lmdb"


def test_every_task_is_of_the_adapter_unless_told_otherwise(tuned: FineTune, sampled: Path) -> None:
    model, store, queries = str(last(tuned.root / "train")), str(tuned.store), str(sampled)
    tasks = (
        Curvature(model),
        Unlearning(model, store, queries, 0),
        MirroredUnlearning(model, queries, 0),
        VirtualSteps(model, queries, preconditioner="optimizer"),
    )
    adapter = load(model).select("adapter").keys()
    assert [task.selected.keys() == adapter for task in tasks] == [True] * 4
    assert MirroredUnlearning(str(tuned.root / "base"), queries, 0).weights == "all"


def test_what_was_learned_is_the_loss_of_the_base_minus_that_of_the_model(tuned: FineTune, sampled: Path) -> None:
    model, draws = load(last(tuned.root / "train")), Draws(timesteps=3)
    store, queries = Store(tuned.store), Store(sampled)
    found = attribute(Learned(str(tuned.root / "base"), draws), queries, store, model)
    batch = whole_samples(store, np.arange(len(store)))
    before, after = (sample_losses(each, batch, draws, 1, 1)[:, 0] for each in (load(tuned.root / "base"), model))
    expected = (before.double() - after.double()).mean(1)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found.scores, expected.float().expand(2, -1), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"method.base: found .*train/checkpoints/last.ckpt .*, expected what"):
        attribute(Learned(str(last(tuned.root / "train")), draws), queries, store, model)
    with pytest.raises(UserError, match=r"method\.base: found"):
        attribute(Learned(str(tuned.root / "base"), draws), queries, store, load(tuned.root / "base"))


def retraining(tuned: FineTune, sampled: Path, folder: Path, data: Config, **model: Any) -> Config:
    config = tuned.train(folder, **model)
    config["model"]["class_path"] = "lightning_attr.tasks.Retraining"
    config["model"]["init_args"] |= {
        "original": str(last(tuned.root / "train")),
        "queries": str(sampled),
        "method": "subset",
        "evaluation": {"timesteps": 2},
    }
    config["data"]["init_args"] |= data
    return config


@pytest.mark.slow
def test_retrainings_start_from_the_same_base_alone_and_in_groups(
    tuned: FineTune, sampled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [
        retraining(tuned, sampled, tmp_path / f"alone/{seed}", {"subset": {"fraction": 0.5, "seed": seed}}, seed=seed)
        for seed in (1, 2)
    ]
    for member in members:
        del member["trainer"]["callbacks"]
    folders = [run("fit", member) for member in members]
    group = copy.deepcopy(members[0])
    group["trainer"]["default_root_dir"] = str(tmp_path / "group")
    together = [tmp_path / f"together/entries/{place}" for place in range(2)]
    group["model"] = {
        "class_path": "lightning_attr.tasks.GroupedRetraining",
        "init_args": {"members": [member["model"] for member in members], "folders": list(map(str, together))},
    }
    group["data"] = {
        "class_path": "datamodules.GroupedLatents",
        "init_args": {"members": [member["data"] for member in members]},
    }
    run("fit", group)
    for one, other in zip(folders, together, strict=True):
        alone, grouped = load(last(one)), load(last(other))
        assert alone.configs == grouped.configs
        for name, weight in alone.weights.items():
            torch.testing.assert_close(weight, grouped.weights[name], rtol=1e-3, atol=1e-5)
        files = [load_tensors(folder / "retraining.safetensors", "retraining")[0] for folder in (one, other)]
        torch.testing.assert_close(files[0]["retrained_losses"], files[1]["retrained_losses"], rtol=1e-3, atol=1e-4)
        assert not torch.equal(files[0]["retrained_losses"], files[0]["original_losses"])
        assert (other / "pytorch_lora_weights.safetensors").is_file()
    pack = collect(folders, str(tuned.store), str(last(tuned.root / "train")), str(sampled), {})
    assert len(pack.weights) == 64
    assert pack.settings["base"] == str(tuned.root / "base")
    with monkeypatch.context() as here:  # packs go to other machines
        here.chdir(tuned.root)
        below = collect(folders, str(tuned.store), str(last(tuned.root / "train")), str(sampled), {})
    assert below.settings["base"] == "base"
    pack.save(tmp_path / "pack")
    unpack(Pack.load(tmp_path / "pack"), tmp_path / "unpacked")
    original = load(tmp_path / "unpacked/original.ckpt")
    assert torch.equal(predicted(original), predicted(load(last(tuned.root / "train"))))


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({}, None),
        ({"alpha": 3.0}, "found 2.0, expected 1.0 as this model has it"),
        ({"rank": 4}, r"found \(3, 8\), expected \(4, 8\)"),
        ({"targets": r"\.to_k$"}, "to_q.* expected None"),
        (None, "expected None as this model has it"),
    ],
)
def test_a_retraining_of_an_adapter_that_was_trained_elsewhere(
    trained: Config | None, message: str | None, tuned: FineTune, sampled: Path, tmp_path: Path
) -> None:
    write_spec(tmp_path / "model.yaml", tuned.root / "base", tuned.root / "train")
    settings = Trained(**{"rank": 3, "alpha": 6.0, **(trained or {})})
    base = Base(str(tuned.root / "base"), settings if trained is not None else Trained("full"))
    task = Retraining(str(tmp_path / "model.yaml"), str(sampled), base=base)
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        task.check(Store(str(tuned.store)))


def test_a_retraining_of_another_base(tuned: FineTune, sampled: Path, tmp_path: Path) -> None:
    base = {"model": str(tuned.root / "base"), "adapter": {"rank": 2}}
    with pytest.raises(UserError, match=r"model\.original .*: base: found .*'rank': 3.*, expected .*'rank': 2"):
        run("fit", retraining(tuned, sampled, tmp_path / "run", {}, base=base))


@pytest.mark.slow
def test_attribution_looks_at_the_adapter(tuned: FineTune, sampled: Path, tmp_path: Path) -> None:
    data = {"class_path": "datamodules.LatentDataModule", "init_args": {"store": str(tuned.store), "batch_size": 4}}
    curvature = run(
        "fit",
        {
            "trainer": {
                "default_root_dir": str(tmp_path / "curvature"),
                "accelerator": "cpu",
                "max_epochs": 2,
                "logger": False,
            },
            "model": {
                "class_path": "lightning_attr.tasks.Curvature",
                "init_args": {"checkpoint": str(last(tuned.root / "train")), "kind": "ekfac"},
            },
            "data": {**data, "init_args": {**data["init_args"], "order": "stored"}},
        },
    )
    method = {
        "class_path": "lightning_attr.methods.Influence",
        "init_args": {
            "curvature": str(curvature / "curvature.safetensors"),
            "damping": {"value": 0.1, "rule": "mean"},
            "per_draw": True,
            "output": {"draws": {"timesteps": 2}},
        },
    }
    write_spec(tmp_path / "model.yaml", tuned.root / "base", tuned.root / "train")
    by_spec = {**method, "class_path": "lightning_attr.methods.GradientSimilarity"}
    by_spec["init_args"] = {name: method["init_args"][name] for name in ("per_draw", "output")}
    for name, checkpoint, own in (
        ("checkpoint", last(tuned.root / "train"), method),
        ("spec", tmp_path / "model.yaml", by_spec),
    ):
        scores = load_scores(
            run(
                "predict",
                {
                    "trainer": {"default_root_dir": str(tmp_path / name), "accelerator": "cpu", "logger": False},
                    "model": {
                        "class_path": "lightning_attr.tasks.Attribution",
                        "init_args": {"queries": str(sampled), "checkpoints": [str(checkpoint)], "method": own},
                    },
                    "data": data,
                },
            )
            / "scores.safetensors"
        )
        assert scores.settings["weights"] == "adapter"
        assert scores.settings["digests"]["checkpoints.0"] == load(checkpoint).digest


def test_from_python(tuned: FineTune) -> None:
    with pytest.raises(UserError, match=r"model\.denoiser: found none"):
        LatentDiffusion()


@pytest.mark.slow
def test_the_shipped_configs_do_their_work(tuned: FineTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CONFIGS, "configs")
    Path("models").mkdir()
    Path("models/base").symlink_to(tuned.root / "base")
    Path("runs/finetune").mkdir(parents=True)
    Path("runs/finetune/train.lmdb").symlink_to(tuned.store)
    smaller = {"max_steps": 4, "max_epochs": 2, "timesteps": 2, "steps": 2, "top": 2, "rank": 2, "count": 2, "seeds": 1}
    for path in [*Path("configs/finetune").glob("*.yaml"), Path("configs/methods/adapter.yaml")]:
        text = path.read_text().replace("k: [4, 8]", "k: [2]").replace("accelerator: auto", "accelerator: cpu")
        for name, value in smaller.items():
            text = re.sub(rf"\b{name}: \d+", f"{name}: {value}", text)
        path.write_text(text)
    for verb, *names in (
        ("fit", "finetune/train"),
        ("predict", "finetune/sample"),
        ("fit", "finetune/curvature_ekfac"),
        ("predict", "finetune/attribute", "methods/adapter"),
        ("fit", "finetune/train", "finetune/leave_k_out"),
    ):
        run_stage([verb, *(word for name in names for word in ("-c", f"configs/{name}.yaml"))])
    scores = load_scores("runs/finetune/attribute/adapter/scores.safetensors")
    assert (scores.settings["weights"], scores.scores.shape) == ("adapter", (2, 10))
    assert Path("runs/finetune/leave_k_out/0/influence/pytorch_lora_weights.safetensors").is_file()
    sweep(["-c", "configs/finetune/sweep.yaml"])
    pack = Pack.load("runs/finetune/sweep/pack")
    assert len(pack.models) == 1 + 2 + 2 + 1
    assert evaluate(pack, {"influence": scores}).subsets == 2
