"""The record of a set: read as it was written, and refused in one line where it makes no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from abc_sets import MODELS, make_set, write_stores

from datamodules.store import Store
from lightning_attr.abc import AbcSet, of_split
from lightning_attr.artifacts.records import write_record
from lightning_attr.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("abc")
    make_set(folder)
    return folder


def test_a_set_is_read_as_it_was_written(folder: Path) -> None:
    found = AbcSet.load(folder)
    assert found.models == MODELS
    assert [len(found.gallery), len(found.queries)] == [30, 15]
    assert found.models[0].query_ids == (0, 1, 2)


def test_distractors_are_nobodys_exemplars(folder: Path) -> None:
    found = AbcSet.load(folder)
    exemplars = {3, 30, 33, 9, 42, 15, 51, 54, 60, 63}
    assert found.gallery.ids[found.distractors].tolist() == [id for id in range(0, 90, 3) if id not in exemplars]
    own = found.gallery.ids[found.gallery_of(MODELS[4])]
    assert own.tolist() == [id for id in range(0, 90, 3) if id not in exemplars - {60, 63}]
    assert (np.diff(own) > 0).all()


def test_splits(folder: Path) -> None:
    models = AbcSet.load(folder).models
    assert [model.name for model in of_split(models, "test")] == ["a-3", "o-1", "o-2"]
    assert of_split(models, None) == MODELS
    with pytest.raises(UserError, match="split: found no model of holdout, expected one of test, train, validation"):
        of_split(models, "holdout")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((), "models: found none, expected at least one"),
        ((MODELS[0], replace(MODELS[1], name="a-1")), "models: found a-1 twice"),
        ((MODELS[0], replace(MODELS[1], exemplars=(3,))), "a-2: found exemplar 3 in the splits train and validation"),
        ((MODELS[0], replace(MODELS[1], queries={"thing": (1,)})), "a-2: found query 1, which a-1 has made"),
        ((replace(MODELS[0], queries={"thing": (1,), "scene": (1,)}),), "a-1: found query 1, which a-1 has made"),
        ((replace(MODELS[0], exemplars=(3, 3)),), "a-1: found an exemplar twice"),
        ((replace(MODELS[0], exemplars=()),), "a-1: found no exemplars"),
        ((replace(MODELS[0], queries={"thing": ()}),), "a-1: found no queries"),
        ((replace(MODELS[0], split="holdout"),), "a-1: found split 'holdout', expected one of train, validation, test"),
        ((replace(MODELS[0], exemplars=(4,)),), "gallery.lmdb: found no sample 4"),
        ((replace(MODELS[0], queries={"thing": (99,)}),), "queries.lmdb: found no sample 99"),
    ],
)
def test_models_that_make_no_sense_are_refused(folder: Path, models: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AbcSet(Store(folder / "gallery.lmdb"), Store(folder / "queries.lmdb"), tuple(models))


def _record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "abc.json").read_text())
    found.pop("checksum")
    return found


def _drop(record: dict[str, Any]) -> None:
    del record["models"][0]["split"]


def _text_for_ids(record: dict[str, Any]) -> None:
    record["models"][0]["exemplars"] = "3"


def _number_for_text(record: dict[str, Any]) -> None:
    record["models"][0]["checkpoint"] = 3


def _list_for_kinds(record: dict[str, Any]) -> None:
    record["models"][0]["queries"] = [1, 2]


def _later_format(record: dict[str, Any]) -> None:
    record["format"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"models\[0\]: found .*, expected name, category, split, exemplars, queries, checkpoint"),
        (_text_for_ids, r"models\[0\]: exemplars: found '3', expected a list of ids"),
        (_number_for_text, r"models\[0\]: found checkpoint 3, expected a text"),
        (_list_for_kinds, r"models\[0\]: found queries \[1, 2\], expected ids by kind of prompt"),
        (_later_format, "found an AbC set of format 2, expected 1"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    make_set(tmp_path)
    record = _record(tmp_path)
    change(record)
    write_record(tmp_path / "abc.json", record)
    with pytest.raises(UserError, match=f"abc.json.*{message}"):
        AbcSet.load(tmp_path)


def test_a_set_of_other_stores_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "gallery.lmdb").unlink()
    (tmp_path / "queries.lmdb").unlink()
    write_stores(tmp_path, gallery=31)
    with pytest.raises(UserError, match=r"gallery.lmdb: found digest .*, expected .* as .*abc.json has it"):
        AbcSet.load(tmp_path)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path)
    path = tmp_path / "abc.json"
    path.write_text(path.read_text().replace('"a-2"', '"a-9"'))
    with pytest.raises(UserError, match=r"abc.json: damaged"):
        AbcSet.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"abc.json: no such file"):
        AbcSet.load(tmp_path)
