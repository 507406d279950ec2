"""Every shipped config is one that the command line takes, and that does its work on stores of its shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from miniature import Project

from lightning_attr.cli import run_stage
from lightning_attr.denoisers import build_denoiser, build_scheduler, select_weights
from lightning_attr.noise import Draws, draw_timesteps
from tools.prepare_shapes import main as prepare_shapes
from tools.sweep.command import parsed_options

CONFIGS = Path(__file__).parents[1] / "configs"
VERBS = {"sample": "predict", "similarity": "predict", "evaluate": "test"}
STAGES = ("train", "sample", "curvature", "unlearn", "similarity", "leave_k_out", "evaluate")


def command(config: Path) -> list[str]:
    """The command that a config is for; leave_k_out goes on top of train."""
    files = [config.with_name("train.yaml"), config] if config.stem == "leave_k_out" else [config]
    return [VERBS.get(config.stem, "fit"), *(word for file in files for word in ("-c", str(file)))]


def parsed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The config that a command runs with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_stage([*args, "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(config, dict)
    return config


def test_every_folder_has_every_stage() -> None:
    for folder in ("demo", "coco64", "mscoco"):
        assert {path.stem for path in (CONFIGS / folder).glob("*.yaml")} >= {*STAGES, "sweep"}


STAGE_CONFIGS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.stem != "sweep")


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("sweep.yaml")), ids=lambda path: path.parent.name)
def test_a_sweep_parses(config: Path) -> None:
    given = yaml.safe_load(config.read_text())["sweep"]
    sweep = parsed_options(["-c", str(config)]).sweep
    assert all((CONFIGS.parent / path).is_file() for path in sweep.train)
    assert (sweep.folder, sweep.original, sweep.queries) == (given["folder"], given["original"], given["queries"])
    assert (sweep.top.scores, sweep.top.k) == (given["top"]["scores"], given["top"]["k"])
    assert sweep.random.count == given["random"]["count"]


@pytest.mark.parametrize("config", STAGE_CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_parses(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = yaml.safe_load(config.read_text())
    found = parsed(command(config), capsys)
    assert found["trainer"]["default_root_dir"] == given["trainer"]["default_root_dir"]
    assert found["model"]["class_path"] == given["model"]["class_path"]
    for name, value in given["model"].get("init_args", {}).items():
        if not isinstance(value, dict):
            assert found["model"]["init_args"][name] == value


def test_mscoco_is_the_experiment_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    model = parsed(command(CONFIGS / "mscoco/train.yaml"), capsys)["model"]["init_args"]
    with torch.device("meta"):
        network = build_denoiser(model["denoiser"], seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 57_373_316
    weights = select_weights(network, "cross_kv")
    assert len(weights) == 32
    assert sum(weight.numel() for weight in weights.values()) == 7_077_888
    denoiser = model["denoiser"]
    assert (denoiser["in_channels"], denoiser["sample_size"], denoiser["cross_attention_dim"]) == (4, 16, 1024)
    assert len(build_scheduler(model["scheduler"] or {}).alphas_cumprod) == 1000


def test_mscoco_unlearns_as_the_paper_does(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(command(CONFIGS / "mscoco/unlearn.yaml"), capsys)
    model, (recorder,) = config["model"]["init_args"], config["trainer"]["callbacks"]
    assert (model["weights"], model["step_size"], config["trainer"]["max_steps"]) == ("cross_kv", 0.01, 1)
    assert len(Draws(**model["draws"])) == 50_000
    draws = Draws(**recorder["init_args"]["draws"])
    assert draws.mode == "own"
    assert draw_timesteps(draws, 1000).tolist() == list(range(0, 1000, 50))
    leave = parsed(command(CONFIGS / "mscoco/leave_k_out.yaml"), capsys)
    draws = Draws(**leave["model"]["init_args"]["evaluation"])
    assert draw_timesteps(draws, 1000).tolist() == list(range(0, 1000, 5))


def test_leave_k_out_trains_as_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("demo", "coco64", "mscoco"):
        train, leave = (parsed(command(CONFIGS / folder / f"{name}.yaml"), capsys) for name in ("train", "leave_k_out"))
        own = ("original", "queries", "method", "evaluate", "evaluation")
        arguments = {name: value for name, value in leave["model"]["init_args"].items() if name not in own}
        for name, value in arguments.items():
            assert value == train["model"]["init_args"][name], name
        assert leave["trainer"]["max_steps"] == train["trainer"]["max_steps"]
        assert leave["data"]["init_args"]["batch_size"] == train["data"]["init_args"]["batch_size"]


def test_values_are_shared_between_files_and_set_from_the_command_line(stores: Project, tmp_path: Path) -> None:
    queries = {"queries": str(stores.val_store), "method": {"class_path": "lightning_attr.methods.Random"}}
    first = {
        "trainer": {"default_root_dir": "${vars.run}", "accelerator": "cpu"},
        "model": {"class_path": "lightning_attr.tasks.Attribution", "init_args": queries},
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(stores.store), "batch_size": "${vars.size}"},
        },
    }
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    files = ["-c", str(tmp_path / "first.yaml"), "-c", str(tmp_path / "second.yaml")]
    for name, options, size in [("a", [], 4), ("b", ["--vars.size", "5"], 5)]:
        (tmp_path / "second.yaml").write_text(yaml.safe_dump({"vars": {"run": str(tmp_path / name), "size": 4}}))
        run_stage(["predict", *files, *options])
        assert (tmp_path / name / "scores.safetensors").exists()
        resolved = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert resolved["data"]["init_args"]["batch_size"] == size


SHAPES = {
    "demo": ["--size", "32", "--tokens", "16", "--dim", "64"],
    "coco64": ["--size", "32", "--tokens", "24", "--dim", "64"],
    "mscoco": ["--size", "64", "--tokens", "77", "--dim", "1024"],
}
SMALLER: dict[str, list[str]] = {
    "train": ["--trainer.max_steps=2", "--data.init_args.batch_size=4", "--trainer.limit_val_batches=1"],
    "sample": ["--model.init_args.steps=2"],
    "curvature": ["--trainer.max_epochs=1", "--data.init_args.batch_size=4"],
    "unlearn": ["--model.init_args.draws.timesteps=2", "--model.init_args.draws.noises=1"],
    "similarity": [],
    "leave_k_out": [
        "--trainer.max_steps=2",
        "--data.init_args.batch_size=4",
        "--model.init_args.evaluation.timesteps=2",
    ],
    "evaluate": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", SHAPES)
def test_works(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stages of a folder, one after the other, on stores of its shapes and with fewer steps."""
    monkeypatch.chdir(tmp_path)
    root = Path("runs") / folder
    prepare_shapes([
        "--out", str(root / "train.lmdb"), "--val", str(root / "val.lmdb"),
        "--count", "8", "--val-count", "2", "--planted", "1", *SHAPES[folder],
    ])  # fmt: skip
    for stage in STAGES:
        args = command(CONFIGS / folder / f"{stage}.yaml")
        config = parsed(args, capsys)
        settings = list(SMALLER[stage])
        if callbacks := config["trainer"]["callbacks"]:
            for callback in callbacks:
                if callback["class_path"].endswith("SampleGrid"):
                    callback["init_args"]["steps"] = 2
                if callback["class_path"].endswith("LossDeltaRecorder"):
                    callback["init_args"]["draws"]["timesteps"] = 1
            settings.append(f"--trainer.callbacks={yaml.safe_dump(callbacks, default_flow_style=True, width=10**6)}")
        if stage in ("train", "leave_k_out"):
            settings += ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=2"]
        if stage == "sample" and config["model"]["init_args"]["prompt_store"]:
            settings.append("--model.init_args.count=2")
        if stage == "leave_k_out":
            settings += [
                f"--data.init_args.exclude.scores={root}/unlearn/0/scores.safetensors",
                "--data.init_args.exclude.top=2",
            ]
            folder_of_retrained = config["trainer"]["default_root_dir"]
        if stage == "evaluate":
            settings.append(f"--model.init_args.retrained=[{folder_of_retrained}]")
            if config["model"]["init_args"]["scores"]:
                settings.append(f"--model.init_args.scores=[{root}/unlearn/0/scores.safetensors]")
        run_stage([*args, *settings])
    assert (root / "evaluate/metrics.json").exists()
