"""Reading drawings: the words of captions, and a reader that learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.store import Store
from lightning_attr.commands.prepare.drawings import main as prepare_drawings
from lightning_attr.drawings.drawing import draw_one
from tools import recognise


def test_captions_name_what_the_drawing_shows() -> None:
    for id in range(600):
        drawing = draw_one(0, id, range(recognise.ARTISTS))
        known = drawing.attributes()
        read = recognise.classes_of(drawing.captions()[0])
        assert {name: recognise.CLASSES[name][place] for name, place in read.items()} == {
            name: known[name] for name in recognise.CLASSES
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of drawings by three artists."""
    path = tmp_path_factory.mktemp("drawings") / "store.lmdb"
    prepare_drawings(["--out", str(path), "--count", "192", "--artists", "3"])
    return path


@pytest.mark.slow
def test_a_reader_learns(store: Path) -> None:
    drawings = recognise.read_store(store)
    read = recognise.accuracies(recognise.train(drawings, epochs=12, batch_size=16), drawings)
    assert read["colour"] > 0.3  # by chance 0.1
    assert read["artist"] > 0.6  # by chance 0.33
    with Store(store) as held:
        single = [held.meta(place).attributes["count"] == 1 for place in range(len(held))]
    assert drawings.single.tolist() == single


@pytest.mark.slow
def test_the_same_drawings_are_read_alike(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same, table = [f"--{name}={store}" for name in ("train", "real", "generated")], tmp_path / "table.json"
    reader = tmp_path / "reader.safetensors"
    recognise.main([*same, "--reader", str(reader), "--epochs", "1", "--json", str(table)])
    assert "generated / real" in capsys.readouterr().out
    read = json.loads(table.read_text())
    assert read["real"] == read["generated"]
    recognise.main([*same[1:], "--reader", str(reader), "--json", str(table)])  # the one that was kept
    assert json.loads(table.read_text()) == read
