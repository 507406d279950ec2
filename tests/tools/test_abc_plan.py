"""A plan of an AbC set of drawings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from datamodules.store import Store
from lightning_attr.commands.prepare.drawings import main as prepare_drawings
from tools import abc_plan


def test_models_of_artists_and_of_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "exemplars.lmdb"
    rare = ["--planted", "3", "--kinds", "3", "--first_artist", "60", "--artists", "5"]
    prepare_drawings(["--out", str(path), "--count", "60", "--size", "16", *rare])
    capsys.readouterr()
    abc_plan.main([str(path), "--prompts", "5"])
    models = yaml.safe_load(capsys.readouterr().out)["set"]["models"]
    assert len({model["name"] for model in models}) == len(models) == 8
    seen = [id for model in models for id in model["exemplars"]]
    assert len(set(seen)) == len(seen)
    with Store(path) as store:
        known = {int(id): store.meta(position).attributes for position, id in enumerate(store.ids)}
    for model in models:
        shown = [known[id] for id in model["exemplars"]]
        word, key = ("artist", "artist") if model["category"] == "artist" else ("object", "thing")
        assert {f"{word}-{each[key]}" for each in shown} == {model["name"]}
        assert 4 <= len(shown) <= 12 if word == "artist" else len(shown) == 1
        for kind in ("thing", "scene"):
            prompts = model["prompts"][kind]
            assert len(prompts) == 5
            assert all(shown[0][key] in prompt.split() for prompt in prompts)
        scenes = {each["scene"] for each in shown}
        own = [any(scene in prompt for scene in scenes) for prompt in model["prompts"]["scene"]]
        assert all(own) if word == "artist" else True
    assert {model["split"] for model in models} == {"train", "validation", "test"}
