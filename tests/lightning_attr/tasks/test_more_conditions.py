"""A store with more conditions than the model and its text encoder know, from sampling to scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from damage import Refused, assert_says
from miniature import Project

from datamodules import Field, Sample, Schema, Store, StoreWriter
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.errors import UserError
from lightning_attr.methods.attribute import check_stores
from lightning_attr.models import load
from lightning_attr.models.unet import UNet


@pytest.fixture
def more(project: Project, tmp_path: Path) -> Path:
    """The samples of the project, each with the size of its image as well."""
    store, path = Store(project.store), tmp_path / "more.lmdb"
    size = Field((1, 2), "float32", "condition")
    with StoreWriter(path, Schema({**store.schema.fields, "size": size}, store.schema.encoders)) as writer:
        writer.put_encoder_state("image", store.encoder_state("image") or b"")
        for position in range(len(store)):
            arrays = {name: store.read(name, [position])[0] for name in store.schema.fields}
            sizes = np.ones((1, 2), np.float32)
            writer.write(Sample(store.meta(position), {**arrays, "size": sizes}, store.thumb(position)))
        writer.finish()
    return path


@pytest.fixture
def checkpoint(project: Project, tmp_path: Path, more: Path) -> Path:
    """The model of the project, trained on these samples."""
    run_stage(project.args("train", tmp_path / "train", data__init_args__store=more))
    return tmp_path / "train/checkpoints/last.ckpt"


def test_what_the_encoder_does_not_make_is_no_part_of_a_query(
    project: Project, tmp_path: Path, more: Path, checkpoint: Path
) -> None:
    model_and_store = {"model__init_args__checkpoint": checkpoint, "model__init_args__store": more}
    run_stage(project.args("sample", tmp_path / "sample", **model_and_store))
    found, expected = Store(tmp_path / "sample/queries.lmdb"), Store(project.queries)
    assert found.schema.inputs == expected.schema.inputs
    np.testing.assert_array_equal(found.read("latent", [0, 1]), expected.read("latent", [0, 1]))
    model = load(checkpoint)
    check_stores(found, Store(more), [model])
    with pytest.raises(UserError, match=r"queries .*: found size None, expected \(2,\)"):
        check_stores(found, Store(more), [])
    settings = {"data__init_args__store": more, "model__init_args__checkpoints": f"[{checkpoint}]"}
    run_stage(project.args("similarity", tmp_path / "scores", **settings))
    ours, theirs = (
        Scores.load(run / "scores.safetensors") for run in (tmp_path / "scores", project.root / "similarity")
    )
    assert (ours.scores == theirs.scores).all()


def test_a_condition_of_the_model_that_nobody_makes(
    project: Project, tmp_path: Path, more: Path, checkpoint: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conditions(unet: UNet) -> Mapping[str, tuple[int | None, ...]]:
        return {"text": (None, 16), "size": (2,)}

    monkeypatch.setattr(UNet, "conditions", property(conditions))
    message = refused(project.args("sample", tmp_path / "sample", model__init_args__store=more))
    assert_says(message, more, "its text encoder makes text, expected size as well")
    with pytest.raises(UserError, match=r"found size None, expected \(2,\)"):
        check_stores(Store(project.queries), Store(more), [load(checkpoint)])
