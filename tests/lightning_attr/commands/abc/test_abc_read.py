"""Reading the published layout, of a small folder made in it; what is not of the layout is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_attr.abc import AbcSet
from lightning_attr.cli import run_stage
from lightning_attr.commands.abc import main
from lightning_attr.encoders import thumb_images
from lightning_attr.errors import UserError

MODELS = {"101549_0": ["101549_2", "101549_1"], "103946_0": ["103946_7"]}


def draw(path: Path, number: int) -> str:
    """An image of one colour, by its number, with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(number)
    colour = random.integers(0, 255, 3)
    pixels = np.clip(colour + random.integers(-9, 9, (24, 20, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def layout(root: Path) -> Path:
    """A folder as its authors call and order it; JSON files name files from above it."""
    folder, entries, number = root / "dataset", [], 0
    for place in range(12):
        draw(folder / f"laion_subset/{place // 10:05d}/{place:09d}.png", 1000 + place)
    for model, exemplars in MODELS.items():
        files = [f"exemplar/bamfg/images/{model}/{name}.jpg" for name in exemplars]
        synth: dict[str, list[str]] = {"gpt": [], "object": []}
        for kind, made in synth.items():
            for place in range(2):
                made.append(f"synth/bamfg/{kind}/{model}/samples/{place:05d}.png")
        for file in (*files, *synth["gpt"], *synth["object"]):
            draw(folder / file, number)
            number += 1
        named = {kind: [f"dataset/{file}" for file in made] for kind, made in synth.items()}
        exemplar = [f"dataset/{file}" for file in files]
        entries.append({"exemplar": exemplar, "synth": named, "class_id": model, "category": None})
    (folder / "json").mkdir()
    (folder / "json/test_bamfg.json").write_text(json.dumps(entries))
    return folder


def read(folder: Path, out: Path, **options: Any) -> AbcSet:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    files = f"[{folder / 'json/test_bamfg.json'}]"
    main(["read", str(folder), "--json", files, "--out", str(out), "--size", "16", "--workers", "0", *words])
    return AbcSet.load(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout(tmp_path_factory.mktemp("layout"))


def test_the_set_is_what_the_json_says(folder: Path, tmp_path: Path) -> None:
    found = read(folder, tmp_path / "set")
    assert [(model.name, model.category, model.split) for model in found.models] == [
        ("bamfg/101549_0", "bamfg", "test"),
        ("bamfg/103946_0", "bamfg", "test"),
    ]
    assert len(found.distractors) == 12
    for model, (name, exemplars) in zip(found.models, MODELS.items(), strict=True):
        keys = [found.gallery.meta(place).attributes["key"] for place in found.gallery.positions(model.exemplars)]
        assert keys == [f"exemplar/bamfg/images/{name}/{exemplar}.jpg" for exemplar in exemplars]
        assert list(model.queries) == ["gpt", "object"]
        for kind, queries in model.queries.items():
            keys = [found.queries.meta(place).attributes["key"] for place in found.queries.positions(queries)]
            assert keys == [f"synth/bamfg/{kind}/{name}/samples/{place:05d}.png" for place in range(2)]
    key = found.queries.meta(3).attributes["key"]
    (thumb,) = thumb_images(found.queries, [3])
    with Image.open(folder / key) as image:
        difference = np.asarray(thumb, float).mean((0, 1)) - np.asarray(image, float).mean((0, 1))
    assert np.abs(difference).max() < 4


def test_a_method_and_the_table_run_over_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(folder, tmp_path / "set")
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu"},
        "model": {
            "class_path": "lightning_attr.tasks.Attribution",
            "init_args": {
                "queries": str(tmp_path / "set/queries.lmdb"),
                "method": {"class_path": "lightning_attr.methods.Similarity", "init_args": {"feature": "pixel"}},
            },
        },
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(tmp_path / "set/gallery.lmdb")},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run_stage(["predict", "-c", str(tmp_path / "run.yaml")])
    capsys.readouterr()
    main(["table", str(tmp_path / "run/scores.safetensors"), "--set", str(tmp_path / "set")])
    printed = capsys.readouterr().out
    assert "bamfg: recall and mAP of exemplars" in printed
    assert "similarity-pixel" in printed


def test_some_distractors_and_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read(folder, tmp_path / "set", distractors=5, seed=1)
    assert len(found.distractors) == 5
    keys = [found.gallery.meta(place).attributes["key"] for place in found.distractors]
    assert keys == sorted(keys)
    capsys.readouterr()
    assert read(folder, tmp_path / "set", distractors=5, seed=1).gallery.digest == found.gallery.digest
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"gallery.lmdb: image \d+: found attributes.key"):
        read(folder, tmp_path / "set", distractors=5, seed=2)


def _no_list(entries: list[Any], folder: Path) -> Any:
    return {"a": entries}


def _no_exemplars(entries: list[Any], folder: Path) -> Any:
    del entries[1]["exemplar"]
    return entries


def _one_file(entries: list[Any], folder: Path) -> Any:
    entries[0]["exemplar"] = entries[0]["exemplar"][0]
    return entries


def _synth_without_kinds(entries: list[Any], folder: Path) -> Any:
    entries[0]["synth"] = entries[0]["synth"]["gpt"]
    return entries


def _outside(entries: list[Any], folder: Path) -> Any:
    entries[0]["exemplar"] = ["dataset/exemplar/../../secret.png"]
    return entries


def _elsewhere(entries: list[Any], folder: Path) -> Any:
    entries[0]["exemplar"] = ["dataset/laion_subset/00000/000000001.png"]
    return entries


def _missing(entries: list[Any], folder: Path) -> Any:
    (folder / "synth/bamfg/gpt/101549_0/samples/00001.png").unlink()
    return entries


def _no_distractors(entries: list[Any], folder: Path) -> Any:
    (folder / "laion_subset").rename(folder / "laion")
    return entries


def _twice(entries: list[Any], folder: Path) -> Any:
    return [entries[0], entries[0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_list, "test_bamfg.json: found .*, expected a list of tuned models"),
        (_no_exemplars, "entry 1: found .*, expected exemplar, synth, class_id"),
        (_one_file, "entry 0: exemplar: found 'dataset/.*', expected a list of files"),
        (_synth_without_kinds, "entry 0: found synth .*, expected files by kind of prompt"),
        (_outside, "entry 0: exemplar: found the path .*, expected one within exemplar"),
        (_elsewhere, "entry 0: exemplar: found the path .*, expected one within exemplar"),
        (_missing, "entry 0: synth of gpt: found no file .*/dataset/synth/bamfg/gpt/101549_0/samples/00001.png"),
        (_no_distractors, "laion_subset: no such folder, expected the distractors"),
        (_twice, "models: found bamfg/101549_0 twice"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, change: Callable[[list[Any], Path], Any], message: str) -> None:
    folder = layout(tmp_path)
    path = folder / "json/test_bamfg.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()), folder)))
    with pytest.raises(UserError, match=message) as error:
        read(folder, tmp_path / "set")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def test_a_file_of_another_name_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "json/bamfg.json").write_text("[]")
    with pytest.raises(UserError, match=r"found the name 'bamfg.json', expected one such as test_bamfg.json"):
        main(["read", str(folder), "--json", f"[{folder / 'json/bamfg.json'}]", "--out", str(tmp_path / "set")])
