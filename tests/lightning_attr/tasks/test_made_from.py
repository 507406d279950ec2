"""What a model was made from is compared with what it is asked about."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from damage import Refused, assert_says
from miniature import Project

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.encoders import encoders_digest
from lightning_attr.models import load

SIZES = ["--count", "40", "--planted", "4", "--tokens", "6", "--dim", "16"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of other images, and so of another basis of patches."""
    path = tmp_path_factory.mktemp("other") / "other.lmdb"
    prepare_shapes(["--out", str(path), "--seed", "5", *SIZES])
    return path


def test_a_checkpoint_knows_its_store_and_the_encoders(project: Project) -> None:
    store, model = Store(project.store), load(project.checkpoint)
    assert model.made_from == {"store": store.digest, "encoders": encoders_digest(store)}
    assert encoders_digest(Store(project.val_store)) == encoders_digest(store)
    assert encoders_digest(Store(project.queries)) == encoders_digest(store)


@pytest.mark.parametrize(
    ("stage", "argument"),
    [
        ("train", "data__init_args__val_store"),
        ("sample", "model__init_args__store"),
        ("curvature", "data__init_args__store"),
        ("unlearn", "model__init_args__queries"),
        ("unlearn", "model__init_args__store"),
        ("similarity", "data__init_args__store"),
        ("leave_k_out", "model__init_args__queries"),
    ],
)
def test_another_latent_space_is_refused(
    project: Project, tmp_path: Path, other: Path, refused: Refused, stage: str, argument: str
) -> None:
    """The same numbers are other images there, and every loss would be one of nothing."""
    message = refused(project.args(stage, tmp_path / "run", **{argument: other}))
    assert_says(message, "found encoders of digest", encoders_digest(Store(other)))


@pytest.fixture
def swapped(project: Project, tmp_path: Path) -> Path:
    """A store of other images in the training's latent space."""
    return Path(shutil.copy(project.val_store, tmp_path / "swapped.lmdb"))


@pytest.mark.parametrize(
    ("stage", "argument"),
    [
        ("curvature", "data__init_args__store"),
        ("unlearn", "model__init_args__store"),
        ("similarity", "data__init_args__store"),
        ("leave_k_out", "data__init_args__store"),
    ],
)
def test_a_store_that_was_swapped_under_a_model_is_refused(
    project: Project, tmp_path: Path, swapped: Path, refused: Refused, stage: str, argument: str
) -> None:
    settings = {argument: swapped}
    if stage == "similarity":
        settings["model__init_args__method"] = '{"class_path": "Trak"}'
        settings["model__init_args__checkpoints"] = f"[{project.checkpoint}]"
    if stage == "leave_k_out":
        settings["data__init_args__exclude"] = '{"scores": null, "top": null, "random": 3}'
    message = refused(project.args(stage, tmp_path / "run", **settings))
    digests = Store(project.store).digest, Store(swapped).digest
    assert_says(message, project.checkpoint, f"made from store of digest {digests[0]}, expected {digests[1]}", swapped)


@pytest.mark.slow
def test_a_finished_run_that_lost_its_result_makes_it_again(project: Project, tmp_path: Path) -> None:
    """And with the same bits: its model is at the end of its training already."""
    for stage, name in (("unlearn", "scores"), ("curvature", "curvature"), ("similarity", "scores")):
        run, result = tmp_path / stage, tmp_path / stage / f"{name}.safetensors"
        shutil.copytree(project.root / stage, run)
        whole = result.read_bytes()
        result.unlink()
        run_stage(project.args(stage, run))
        assert result.read_bytes() == whole, stage
        assert load_tensors(result)
