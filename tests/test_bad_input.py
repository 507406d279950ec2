"""A user's mistake ends with status 1 and one message that says where, what was found and what was expected."""

from __future__ import annotations

import os
import pickle
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
from miniature import Project

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.cli import main
from tools.prepare_shapes import main as prepare_shapes

Refused = Callable[[list[str]], str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], project: Project) -> Refused:
    """Run a command that must be refused; return its one message. What others have made stays as it was."""

    def run(args: list[str]) -> str:
        before = snapshot(project.root)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(args)
        printed = capfd.readouterr().err
        assert ended.value.code == 1
        assert "Traceback" not in printed
        messages = [line for line in printed.splitlines() if not line.startswith("resuming from")]
        assert len(messages) == 1, printed
        assert messages[0].startswith("error: ")
        assert snapshot(project.root) == before
        return messages[0]

    return run


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def flipped(path: Path, target: Path, at: float) -> Path:
    """Copy a file with one bit flipped at a place from 0 to 1."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 16
    target.write_bytes(data)
    return target


def truncated(path: Path, target: Path) -> Path:
    """Copy the first half of a file."""
    data = path.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target


def assert_says(message: str, *words: object) -> None:
    for word in words:
        assert str(word) in message, message


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


@pytest.mark.parametrize("sizes", [["--size", "16"], ["--channels", "8"], ["--dim", "32"]], ids=str)
def test_store_of_another_shape_than_the_model(
    project: Project, tmp_path: Path, refused: Refused, sizes: list[str]
) -> None:
    other = tmp_path / "other.lmdb"
    base = ["--count", "8", "--planted", "1", "--tokens", "6", "--dim", "16"]
    prepare_shapes(["--out", str(other), *base, *sizes])
    for stage in ("train", "curvature"):
        message = refused(project.args(stage, tmp_path / stage, data__init_args__store=other))
        assert_says(message, other, "found", "expected", "model.denoiser")
    assert_says(refused(project.args("similarity", tmp_path / "s", data__init_args__store=other)), "found", "expected")


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
        ("unlearn", {"model__init_args__draws__timesteps": 0}, ["draws", "0", "at least one"]),
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
        ("train", {"model__init_args__scheduler__prediction_type": "sample"}, ["prediction_type", "sample", "epsilon"]),
        ("train", {"trainer__max_step": 1}, ["max_step"]),
        ("train", {"trainer__max_steps": "many"}, ["trainer.max_steps", "many"]),
        ("train", {"trainer__accelerator": "abacus"}, ["abacus"]),
        ("train", {"model": "NoTask"}, ["NoTask"]),
        ("train", {"data": "NoData"}, ["NoData"]),
        ("similarity", {"model__init_args__method__init_args__feature": "smell"}, ["feature", "smell"]),
        ("evaluate", {"model__init_args__retrained": "[nowhere]"}, ["nowhere", "no such file"]),
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
    save_tensors(path, fisher, settings)
    args = {"model__init_args__curvature": path, "model__init_args__damping__value": 0}
    assert_says(refused(project.args("unlearn", tmp_path / "run", **args)), "curvature: 3 entries", name, "damping")


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_another_config_in_a_folder_with_results(project: Project, refused: Refused) -> None:
    message = refused(project.args("train", model__init_args__learning_rate=0.5, data__init_args__batch_size=4))
    assert_says(message, project.root / "train", "model.init_args.learning_rate: 0.001 -> 0.5", "batch_size: 8 -> 4")
    assert_says(refused(["test", *project.args("train")[1:]]), "verb: fit -> test")


def test_a_failed_start_may_be_repaired(project: Project, tmp_path: Path, refused: Refused) -> None:
    refused(project.args("similarity", tmp_path / "run", data__init_args__store=tmp_path / "none.lmdb"))
    main(project.args("similarity", tmp_path / "run"))
    assert (tmp_path / "run/scores.safetensors").exists()


@pytest.mark.parametrize("rate", ["1e30", ".inf"])
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
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    for name in checkpoint["current_model_state"]:
        checkpoint["current_model_state"][name].fill_(float("nan"))
    poisoned = tmp_path / "poisoned.ckpt"
    torch.save(checkpoint, poisoned)
    args = [*project.args("train", run), "--ckpt_path", str(poisoned)]
    assert_says(refused(args), "train/loss", "nan", "expected a finite loss")
    assert (run / "checkpoints/last.ckpt").read_bytes() == before


def test_unlearning_a_checkpoint_with_nan(project: Project, tmp_path: Path, refused: Refused) -> None:
    checkpoint = torch.load(project.checkpoint, weights_only=True)
    for value in checkpoint["state_dict"].values():
        value.fill_(float("nan"))
    path = tmp_path / "nan.ckpt"
    torch.save(checkpoint, path)
    settings = {"model__init_args__checkpoint": path}
    without = {**settings, "model__init_args__curvature": "null"}
    assert_says(refused(project.args("unlearn", tmp_path / "unlearn", **without)), "loss is nan", "finite")
    assert_says(refused(project.args("curvature", tmp_path / "curvature", **settings)), "curvature", "not finite")


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def test_validate_needs_a_checkpoint(project: Project, tmp_path: Path, refused: Refused) -> None:
    args = ["validate", *project.args("train", tmp_path / "run")[1:]]
    assert_says(refused(args), tmp_path / "run/checkpoints/last.ckpt", "no such checkpoint")
    assert_says(refused([*args, "--ckpt_path", "last"]), tmp_path / "run/checkpoints/last.ckpt")
    assert_says(refused([*args, "--ckpt_path", str(tmp_path / "x.ckpt")]), tmp_path / "x.ckpt", "no such file")


def test_validate_takes_the_last_checkpoint(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    main(["validate", *project.args("train")[1:]])
    assert "val/loss" in capfd.readouterr().out


def test_fit_from_last_without_one(project: Project, tmp_path: Path, refused: Refused) -> None:
    args = [*project.args("train", tmp_path / "run"), "--ckpt_path", "last"]
    assert_says(refused(args), tmp_path / "run/checkpoints/last.ckpt", "no such checkpoint")
    args = [*project.args("train", tmp_path / "run"), "--ckpt_path", str(tmp_path / "none.ckpt")]
    assert_says(refused(args), tmp_path / "none.ckpt", "no such file")


def test_a_checkpoint_of_another_architecture(project: Project, tmp_path: Path, refused: Refused) -> None:
    args = project.args("train", tmp_path / "run", model__init_args__denoiser__block_out_channels="[8, 24]")
    message = refused([*args, "--ckpt_path", str(project.checkpoint)])
    assert_says(message, "another architecture", "block_out_channels", "[8, 16]", "[8, 24]")
    args = project.args("leave_k_out", tmp_path / "l", model__init_args__denoiser__layers_per_block=2)
    assert_says(refused(args), project.checkpoint, "layers_per_block")


def test_curvature_of_other_weights_or_another_checkpoint(project: Project, tmp_path: Path, refused: Refused) -> None:
    message = refused(project.args("unlearn", tmp_path / "a", model__init_args__weights="attention"))
    assert_says(message, "curvature", "attn1", "'cross_kv'")
    other = tmp_path / "other.ckpt"
    checkpoint = torch.load(project.checkpoint, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).add_(1)
    torch.save(checkpoint, other)
    message = refused(project.args("unlearn", tmp_path / "b", model__init_args__checkpoint=other))
    assert_says(message, project.curvature, other)
    wrong = {"model__init_args__curvature": project.root / "unlearn/weights.safetensors"}
    assert_says(refused(project.args("unlearn", tmp_path / "c", **wrong)), "weights.safetensors", "curvature")
    foreign = {"model__init_args__curvature": project.scores}
    assert_says(refused(project.args("unlearn", tmp_path / "d", **foreign)), project.scores)


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
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(path, run / "checkpoints/last.ckpt")
    assert_says(refused(project.args("train", run)), "last.ckpt", "refused")
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


@pytest.mark.slow
def test_the_real_command_prints_one_line(project: Project, tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("lightning-attr"))
    args = project.args("train", tmp_path / "run", data__init_args__store=tmp_path / "none.lmdb")
    ended = subprocess.run([command, *args], capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch(r"error: .*none\.lmdb: found no file, expected a store\n", ended.stderr), ended.stderr
