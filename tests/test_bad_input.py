"""A user's mistake ends with status 1 and one message that says where, what was found and what was expected."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import Refused, assert_says, changed, flipped, truncated
from miniature import Project

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.cli import main
from lightning_attr.commands.prepare.shapes import main as prepare_shapes

# --- Stores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["train", "curvature", "similarity"])
def test_missing_store(project: Project, tmp_path: Path, refused: Refused, stage: str) -> None:
    missing = tmp_path / "none.lmdb"
    message = refused(project.args(stage, tmp_path / "run", data__init_args__store=missing))
    assert_says(message, missing, "found no file, expected a store")


@pytest.mark.parametrize("key", ["store", "queries"])
def test_missing_store_of_unlearning(project: Project, tmp_path: Path, refused: Refused, key: str) -> None:
    missing = tmp_path / "none.lmdb"
    message = refused(project.args("unlearn", tmp_path / "run", **{f"model__init_args__{key}": missing}))
    assert_says(message, missing, "expected a store")


def test_truncated_store(project: Project, tmp_path: Path, refused: Refused) -> None:
    broken = truncated(project.store, tmp_path / "half.lmdb")
    message = refused(project.args("train", tmp_path / "run", data__init_args__store=broken))
    assert_says(message, broken, "found", "expected")


def test_a_file_that_is_no_store(project: Project, tmp_path: Path, refused: Refused) -> None:
    message = refused(project.args("train", tmp_path / "run", data__init_args__store=project.root / "train.yaml"))
    assert_says(message, project.root / "train.yaml")


@pytest.mark.parametrize("workers", [0, 2])
def test_flipped_bit_of_a_latent(project: Project, tmp_path: Path, refused: Refused, workers: int) -> None:
    latent = Store(str(project.store)).read("latent", [7]).tobytes()
    place = project.store.read_bytes().index(latent[:64])
    broken = flipped(project.store, tmp_path / "flipped.lmdb", (place + 8) / project.store.stat().st_size)
    settings = {"data__init_args__store": broken, "data__init_args__num_workers": workers}
    message = refused(project.args("train", tmp_path / "run", **settings))
    assert_says(message, broken, "damaged")
    message = refused(project.args("similarity", tmp_path / "other", **settings))
    assert_says(message, broken, "damaged")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (["--channels", "8"], ["found latent of 8 x 8 x 8", "expected 4 x any x any"]),
        (["--dim", "32"], ["found text of 6 x 32", "expected any x 16"]),
    ],
)
def test_store_of_another_shape_than_the_model(
    project: Project, tmp_path: Path, refused: Refused, sizes: list[str], words: list[str]
) -> None:
    other = tmp_path / "other.lmdb"
    base = ["--count", "8", "--planted", "1", "--tokens", "6", "--dim", "16"]
    prepare_shapes(["--out", str(other), *base, *sizes])
    for stage in ("train", "curvature"):
        message = refused(project.args(stage, tmp_path / stage, data__init_args__store=other))
        assert_says(message, other, *words)
    for stage, setting in (("train", "data__init_args__val_store"), ("leave_k_out", "model__init_args__queries")):
        assert_says(refused(project.args(stage, tmp_path / setting, **{setting: other})), other, *words)
    assert_says(refused(project.args("similarity", tmp_path / "s", data__init_args__store=other)), "found", "expected")


def test_latents_of_a_size_that_the_network_does_not_halve(project: Project, tmp_path: Path, refused: Refused) -> None:
    other = tmp_path / "other.lmdb"
    sizes = ["--count", "8", "--planted", "1", "--tokens", "6", "--dim", "16", "--size", "20"]
    prepare_shapes(["--out", str(other), *sizes])
    blocks = {
        "block_out_channels": "[8, 8]",
        "down_block_types": "[CrossAttnDownBlock2D, DownBlock2D]",
        "up_block_types": "[UpBlock2D, UpBlock2D]",
    }
    denoiser = {f"model__init_args__denoiser__{name}": value for name, value in blocks.items()}
    for setting in ("store", "val_store"):
        message = refused(
            project.args("train", tmp_path / setting, **denoiser, **{f"data__init_args__{setting}": other})
        )
        assert_says(message, other, "found latents of 5 x 5", "expected multiples of 2")


def test_store_replaced_under_a_run(project: Project, tmp_path: Path, refused: Refused) -> None:
    store = tmp_path / "store.lmdb"
    shutil.copy(project.store, store)
    args = project.args("similarity", tmp_path / "run", data__init_args__store=store)
    main(args)
    os.replace(shutil.copy(project.val_store, tmp_path / "copy.lmdb"), store)
    found, expected = Store(str(store)).digest, Store(str(project.store)).digest
    assert_says(refused(args), tmp_path / "run", store, f"{expected} -> {found}")
    store.unlink()
    assert_says(refused(args), store, "missing")


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "settings", "words"),
    [
        ("unlearn", {"model__init_args__weights": "no_such_layer"}, ["weights", "no_such_layer", "cross_kv"]),
        ("unlearn", {"model__init_args__weights": "to_(k"}, ["weights", "to_(k", "not a regular expression"]),
        ("curvature", {"model__init_args__weights": "^$"}, ["weights", "selects nothing"]),
        ("unlearn", {"model__init_args__query": 99}, ["queries.lmdb", "99", "expected ids"]),
        ("unlearn", {"model__init_args__query": "star"}, ["query", "star", "int"]),
        ("unlearn", {"model__init_args__draws__timesteps": 1001}, ["draws.timesteps", "1001", "1000"]),
        ("unlearn", {"model__init_args__draws__timesteps": 0}, ["draws.timesteps", "found 0"]),
        ("leave_k_out", {"data__init_args__exclude__top": 41}, ["exclude.top", "41", "40"]),
        ("leave_k_out", {"data__init_args__exclude__top": 40}, ["no sample left", "40"]),
        ("leave_k_out", {"data__init_args__exclude__query": 9}, ["exclude.query", "9", "expected one of"]),
        ("leave_k_out", {"model__init_args__evaluate": "[77]"}, ["queries.lmdb", "77"]),
        ("sample", {"model__init_args__prompts": "[]"}, ["model.prompts", "found none"]),
        ("train", {"data__init_args__batch_size": 0}, ["data.batch_size", "0", "at least 1"]),
        ("train", {"data__init_args__batch_size": "many"}, ["batch_size", "many"]),
        ("train", {"checkpoint__every_n_train_steps": 0}, ["checkpoint.every_n_train_steps", "0"]),
        ("train", {"model__init_args__learning_rat": 1}, ["learning_rat"]),
        ("train", {"model__init_args__denoiser__block_out_chanels": "[8]"}, ["model.denoiser", "block_out_chanels"]),
        ("train", {"model__init_args__denoiser__norm_num_groups": 5}, ["model.denoiser", "5"]),
        ("train", {"model__init_args__denoiser___class_name": "NoNet"}, ["model.denoiser", "NoNet"]),
        (
            "train",
            {"model__init_args__denoiser__down_block_types": "[NoBlock, NoBlock]"},
            ["model.denoiser", "NoBlock"],
        ),
        ("train", {"model__init_args__denoiser__cross_attention_dim": "wide"}, ["model.denoiser"]),
        ("train", {"model__init_args__scheduler__beta_schedul": "linear"}, ["model.scheduler", "beta_schedul"]),
        ("train", {"model__init_args__scheduler__beta_schedule": "none"}, ["model.scheduler", "none"]),
        ("train", {"model__init_args__scheduler__prediction_type": "score"}, ["prediction_type", "score", "epsilon"]),
        ("train", {"trainer__max_step": 1}, ["max_step"]),
        ("train", {"trainer__max_time": "00:01:00:00"}, ["trainer.max_time", "SIGTERM"]),
        ("unlearn", {"trainer__limit_train_batches": 1}, ["trainer.limit_train_batches", "found 1", "count as done"]),
        ("curvature", {"trainer__limit_train_batches": 0.5}, ["trainer.limit_train_batches", "0.5", "count as done"]),
        ("sample", {"trainer__limit_predict_batches": 1}, ["trainer.limit_predict_batches: found 1", "count as done"]),
        ("evaluate", {"trainer__limit_test_batches": 0.5}, ["trainer.limit_test_batches", "0.5", "count as done"]),
        ("train", {"trainer__fast_dev_run": "true"}, ["trainer.fast_dev_run", "count as finished"]),
        ("train", {"trainer__max_steps": 0}, ["trainer: found {'max_steps': 0", "at least one step"]),
        ("train", {"trainer__max_steps": -1, "trainer__max_epochs": -1}, ["'max_epochs': -1", "an end"]),
        ("train", {"model__init_args__learning_rate": -0.1}, ["model.learning_rate: found -0.1, expected at least 0"]),
        ("train", {"model__init_args__learning_rate": ".nan"}, ["model.learning_rate: found nan"]),
        ("train", {"model__init_args__caption_dropout": 1.5}, ["caption_dropout: found 1.5, expected 0 to 1"]),
        ("train", {"model__init_args__warmup_steps": -3}, ["model.warmup_steps: found -3"]),
        (
            "train",
            {"trainer__callbacks": "[{class_path: callbacks.EMA, init_args: {decay: .nan}}]"},
            ["trainer.callbacks.0.decay: found nan, expected a number"],
        ),
        ("train", {"model__init_args__scheduler__clip_sample": "[]"}, ["scheduler.clip_sample: found []", "true or"]),
        (
            "train",
            {"model__init_args__scheduler__clip_sample": "null"},
            ["scheduler.clip_sample: found 'None', expected true or"],
        ),
        ("train", {"data__init_args__batch_size": 10**30}, ["data.batch_size: found 1000", "at most 64 bits"]),
        ("train", {"data__init_args__num_workers": 100_000}, ["data.num_workers: found 100000, expected 0 to 1024"]),
        ("sample", {"model__init_args__batch_size": -1}, ["model.batch_size: found -1, expected at least 1"]),
        ("sample", {"model__init_args__steps": 5000}, ["steps: found 5000, expected 1 to 1000"]),
        (
            "train",
            {"trainer__callbacks": "[{class_path: callbacks.SampleGrid, init_args: {prompts: [x], steps: 0}}]"},
            ["callbacks.SampleGrid.steps: found 0"],
        ),
        ("sample", {"model__init_args__steps": -1}, ["model.steps: found -1, expected 1 to 10000"]),
        ("sample", {"model__init_args__guidance": "1e30"}, ["model.guidance: found 1e+30, expected 0 to 1000"]),
        ("unlearn", {"model__init_args__step_size": ".inf"}, ["model.step_size: found inf"]),
        ("leave_k_out", {"data__init_args__exclude__scores": "[]"}, ["exclude.scores: found none"]),
        ("train", {"trainer__max_steps": "many"}, ["trainer.max_steps", "many"]),
        ("train", {"trainer__accelerator": "abacus"}, ["abacus"]),
        ("train", {"model": "NoTask"}, ["model: found 'NoTask'", "Attribution, Curvature", "another LightningModule"]),
        ("train", {"model": "datamodules.Store"}, ["model: found 'datamodules.Store'", "LatentDiffusion"]),
        ("train", {"data": "NoData"}, ["data: found 'NoData', expected one of GroupedLatents, LatentDataModule"]),
        ("train", {"trainer__callbacks": "NoCallback"}, ["trainer.callbacks: found 'NoCallback', expected one of EMA"]),
        (
            "train",
            {"trainer__callbacks": "[{class_path: callbacks.EM}]"},
            ["found 'callbacks.EM', expected one of EMA"],
        ),
        ("similarity", {"model__init_args__method": "NoMethod"}, ["method: found 'NoMethod'", "Similarity, Trak"]),
        (
            "similarity",
            {"model__init_args__method__class_path": "lightning_attr.methods.NoMethod"},
            ["method: found 'lightning_attr.methods.NoMethod'", "Similarity, Trak"],
        ),
        ("similarity", {"model__init_args__method__init_args__feature": "smell"}, ["feature", "smell"]),
        (
            "similarity",
            {
                "model__init_args__method": "lightning_attr.methods.GradientSimilarity",
                "model__init_args__method__init_args__captions": -1,
            },
            ["method.captions", "-1", "at least 1"],
        ),
        ("evaluate", {"model__init_args__retrained": "[nowhere]"}, ["nowhere", "no such file"]),
        ("evaluate", {"model__init_args__relevant__attribute": "plantd"}, ["relevant.attribute", "plantd"]),
        ("evaluate", {"model__init_args__relevant__queries": "[0, 77]"}, ["relevant.queries", "77", "expected one of"]),
    ],
    ids=lambda value: ",".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else None,
)
def test_settings(
    project: Project, tmp_path: Path, refused: Refused, stage: str, settings: dict[str, Any], words: list[str]
) -> None:
    assert_says(refused(project.args(stage, tmp_path / "run", **settings)), *words)


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("train", lambda config: config["model"]["init_args"].update(learning_rat=1), ["learning_rat"]),
        ("train", lambda config: config["trainer"].update(max_step=1), ["max_step"]),
        ("train", lambda config: config.update(modle={"class_path": "x"}), ["modle"]),
        ("train", lambda config: config["model"]["init_args"]["denoiser"].update(layer=1), ["model.denoiser", "layer"]),
        ("train", lambda config: config["data"].update(class_path="datamodules.Nothing"), ["datamodules.Nothing"]),
        ("train", lambda config: config["data"]["init_args"].update(batch_size="${vars.size}"), ["vars.size"]),
        ("train", lambda config: config["data"]["init_args"].update(batch_size="${vars.size"), ["vars.size"]),
        ("train", lambda config: config.pop("model"), ["model"]),
        ("train", lambda config: config["trainer"].pop("default_root_dir"), ["trainer.default_root_dir"]),
        ("unlearn", lambda config: config["model"]["init_args"].pop("query"), ["query"]),
        ("curvature", lambda config: config["data"]["init_args"].pop("order"), ["order: stored"]),
        ("curvature", lambda config: config.pop("data"), ["data"]),
        (
            "unlearn",
            lambda config: config["trainer"]["callbacks"][0]["init_args"].update(batch=1),
            ["batch"],
        ),
    ],
)
def test_configs(
    project: Project, tmp_path: Path, refused: Refused, stage: str, change: Callable[[Any], object], words: list[str]
) -> None:
    config = project.configs()[stage]
    config["trainer"]["default_root_dir"] = str(tmp_path / "run")
    change(config)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert_says(refused(["fit", "-c", str(path)]), *words)


def test_config_files(project: Project, tmp_path: Path, refused: Refused) -> None:
    missing = tmp_path / "none.yaml"
    assert_says(refused(["fit", "-c", str(missing)]), missing)
    broken = tmp_path / "broken.yaml"
    broken.write_text("trainer: {max_steps: 1\nmodel: [")
    assert_says(refused(["fit", "-c", str(broken)]), broken)
    assert_says(refused([]), "fit")
    assert_says(refused(["train"]), "train", "fit")


def test_zero_curvature_without_damping(project: Project, tmp_path: Path, refused: Refused) -> None:
    fisher, settings = load_tensors(project.curvature)
    name = next(iter(fisher))
    fisher[name].view(-1)[:3] = 0
    path = tmp_path / "curvature.safetensors"
    save_tensors(path, "curvature", fisher, settings)
    args = {"model__init_args__curvature": path, "model__init_args__damping__value": 0}
    assert_says(refused(project.args("unlearn", tmp_path / "run", **args)), "curvature: 3 entries", name, "damping")


def test_a_module_of_the_users_that_cannot_be_imported(
    project: Project, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_method.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    args = {"model__init_args__method__class_path": "my_method.Mine"}
    assert_says(refused(project.args("similarity", tmp_path / "run", **args)), "No module named 'no_such_library'")


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_another_config_in_a_folder_with_results(project: Project, refused: Refused) -> None:
    message = refused(project.args("train", model__init_args__learning_rate=0.5, data__init_args__batch_size=4))
    assert_says(message, project.root / "train", "model.init_args.learning_rate: 0.001 -> 0.5", "batch_size: 8 -> 4")
    message = refused(["test", *project.args("train")[1:]])
    assert_says(message, "model: found LatentDiffusion, a task to fit and validate, expected one to test")


def test_a_failed_start_may_be_repaired(project: Project, tmp_path: Path, refused: Refused) -> None:
    refused(project.args("similarity", tmp_path / "run", data__init_args__store=tmp_path / "none.lmdb"))
    main(project.args("similarity", tmp_path / "run"))
    assert (tmp_path / "run/scores.safetensors").exists()


@pytest.mark.parametrize("rate", ["1e30", "1e200"])
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    project: Project, tmp_path: Path, refused: Refused, rate: str
) -> None:
    """Lightning's own clipping is off, so that the weights explode."""
    args = project.args(
        "train", tmp_path / "run", model__init_args__learning_rate=rate, model__init_args__warmup_steps=0,
        checkpoint__every_n_train_steps=1, trainer__gradient_clip_val="null",
    )  # fmt: skip
    assert_says(refused(args), "step", "finite")
    last = tmp_path / "run/checkpoints/last.ckpt"
    if last.exists():
        assert all(value.isfinite().all() for value in torch.load(last, weights_only=True)["state_dict"].values())


def test_a_trained_checkpoint_survives_a_loss_that_is_not_finite(
    project: Project, tmp_path: Path, refused: Refused
) -> None:
    """The store is good until the run is under way; then its latents are huge."""
    run = tmp_path / "run"
    main(project.args("train", run, trainer__max_steps=6))
    before = (run / "checkpoints/last.ckpt").read_bytes()
    poisoned = changed(
        run / "checkpoints/last.ckpt",
        tmp_path / "poisoned.ckpt",
        lambda found: [value.fill_(float("nan")) for value in found["current_model_state"].values()],
    )
    args = [*project.args("train", run), "--ckpt_path", str(poisoned)]
    assert_says(refused(args), "train/loss", "nan", "expected a finite loss")
    assert (run / "checkpoints/last.ckpt").read_bytes() == before


def test_a_checkpoint_with_nan(project: Project, tmp_path: Path, refused: Refused) -> None:
    path = changed(
        project.checkpoint,
        tmp_path / "nan.ckpt",
        lambda found: [value.fill_(float("nan")) for value in found["state_dict"].values()],
    )
    settings = {"model__init_args__checkpoint": path}
    for stage in ("unlearn", "curvature", "sample"):
        assert_says(refused(project.args(stage, tmp_path / stage, **settings)), path, "not finite, expected numbers")


@pytest.mark.slow
def test_the_real_command_prints_one_line(project: Project, tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("lightning-attr"))
    args = project.args("train", tmp_path / "run", data__init_args__store=tmp_path / "none.lmdb")
    ended = subprocess.run([command, *args], capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch(r"error: .*none\.lmdb: found no file, expected a store\n", ended.stderr), ended.stderr
