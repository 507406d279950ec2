"""The page on a new method: its code and its configs work as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from miniature import Project

from datamodules import Store
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage

PAGE = (Path(__file__).parents[1] / "docs/a-new-method.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


DISTANCE, _, GRADIENT = blocks("python")
DISTANCE_CONFIG, GRADIENT_CONFIG = blocks("yaml")


@pytest.fixture
def folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader is: after the demo, with the page's files beside its runs."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(project.root)
    (tmp_path / "latent_distance.py").write_text(DISTANCE)
    (tmp_path / "signed_gradient.py").write_text(GRADIENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("latent_distance", "signed_gradient"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def scored(config: dict[str, Any], run: Path) -> Scores:
    """Run a config of the page in a folder of this test, since that of the demo belongs to all tests."""
    config["trainer"] = {**config.get("trainer", {"accelerator": "cpu"}), "default_root_dir": str(run)}
    config.setdefault("data", yaml.safe_load(DISTANCE_CONFIG)["data"])
    run.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    run_stage(["predict", "-c", str(run.with_suffix(".yaml")), "--trainer.logger", "false"])
    return Scores.load(run / "scores.safetensors")


def test_the_distance_of_latents(folder: Path) -> None:
    found = scored(yaml.safe_load(DISTANCE_CONFIG), folder / "distance")
    queries, store = Store("runs/demo/sample/queries.lmdb"), Store("runs/demo/train.lmdb")
    query = torch.from_numpy(queries.read("latent", queries.positions([2]))[0, 0]).float()
    latents = torch.from_numpy(store.read("latent", store.positions(store.ids.tolist()))).float()
    nearest = (latents - query).abs().flatten(2).sum(2).amin(1)
    torch.testing.assert_close(found.scores[2], -nearest, rtol=1e-4, atol=1e-4)


def test_signs_of_gradients(folder: Path) -> None:
    found = scored(yaml.safe_load(GRADIENT_CONFIG), folder / "signed")
    assert (found.method, found.scores.shape) == ("signed-gradient", (5, 40))
    assert found.settings["output"]["draws"]["window"] == [500, 501]
    assert (found.scores.std(1) > 0).all()
