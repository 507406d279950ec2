"""What an install has that no clone stands behind: the wheel in an environment of its own, from prepare to report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("callbacks", "configs", "datamodules", "lightning_attr", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("lightning_attr", "datamodules", "callbacks")


def run(*words: object, cwd: Path) -> str:
    """Run a command that must succeed; return what it prints on stdout."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment with the wheel, and with the libraries of this one but not its editable install."""
    source, made, wheels = tmp_path / "source", tmp_path / "environment", tmp_path / "wheels"
    source.mkdir()
    for name in SOURCES:  # setuptools builds in its source, where it would leave files and find older ones
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source, cwd=tmp_path)
    shutil.rmtree(source)
    venv.create(made)
    (wheel,) = wheels.iterdir()
    run(*pip, "--python", made / "bin/python", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = made.glob("lib/python*/site-packages")
    # Python reads no .pth files in folders that a .pth file adds.
    (site / "libraries.pth").write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}))
    return made


@pytest.mark.slow
def test_the_wheel_alone_goes_from_prepare_to_report(environment: Path, tmp_path: Path) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()

    files = run(
        environment / "bin/python",
        "-c",
        "; ".join(f"import {package}; print({package}.__file__)" for package in PACKAGES),
        cwd=here,
    )
    places = [Path(line) for line in files.splitlines()]
    assert len(places) == len(PACKAGES)
    assert all(place.is_relative_to(environment) for place in places), files

    def command(*words: str) -> list[str]:
        return run(environment / "bin/lightning-attr", *words, cwd=here).splitlines()

    stores = ["--out", "runs/shapes/train.lmdb", "--val", "runs/shapes/val.lmdb"]
    command("prepare", "shapes", *stores, "--count", "24", "--val_count", "8", "--planted", "4")
    assert command("init", "shapes", "mine")[0] == "made: mine, mine/methods"
    few = ["--model.init_args.steps", "2", "--model.init_args.count", "4"]
    steps = ["--trainer.max_steps", "2", "--data.init_args.batch_size", "8"]
    assert command("fit", "-c", "mine/train.yaml", *steps) == [
        "made: runs/shapes/train/checkpoints/last.ckpt",
        "next: lightning-attr predict -c mine/sample.yaml",
    ]
    assert command("predict", "-c", "mine/sample.yaml", *few) == [
        "made: runs/shapes/sample/queries.lmdb",
        "next: lightning-attr fit -c mine/virtual_steps.yaml",
    ]
    similarity = ("-c", "mine/attribute.yaml", "-c", "mine/methods/similarity_latent.yaml")
    assert command("predict", *similarity)[0] == "made: runs/shapes/attribute/similarity_latent/scores.safetensors"
    assert command("report", "runs/shapes") == ["made: runs/shapes/report.html"]
    page = (here / "runs/shapes/report.html").read_text()
    assert page.lstrip().startswith("<!doctype html>")
    assert page.count("data:image/jpeg") > 4  # queries, and each training image that is shown
    assert page.count('href="#picture-') > 20
    assert all(word in page for word in ("a large purple star", "similarity", "<style"))
