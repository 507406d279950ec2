"""The folder of a run: what may change between two starts, and what may not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lightning_attr.artifacts import read_json
from lightning_attr.artifacts.inputs import InputPath, input_paths
from lightning_attr.errors import UserError
from lightning_attr.runs.folder import RunFolder, declared_inputs, flatten, input_files

if TYPE_CHECKING:
    from os import PathLike

CONFIGS = Path(__file__).parents[3] / "configs"


def config(**trainer: Any) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {"max_steps": 10, "max_epochs": None, "log_every_n_steps": 50, **trainer},
        "model": {"class_path": "Task", "init_args": {"learning_rate": 0.1}},
        "data": {"class_path": "Data", "init_args": {"batch_size": 2, "num_workers": 0}},
    }


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a run under way that has made something."""
    run = RunFolder(tmp_path / "run")
    assert run.start("fit", config())
    (run.path / "weights.safetensors").touch()
    return run


def test_a_start_leaves_config_and_manifest(folder: RunFolder) -> None:
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == config()
    manifest = read_json(folder.path / "manifest.json")
    assert manifest["status"] == "running"
    assert manifest["seed"] == 0
    assert {"torch", "lightning", "lightning-attr"} <= manifest["versions"].keys()


def test_a_finished_run_is_finished_until_its_limits_change(folder: RunFolder) -> None:
    assert folder.start("fit", config())
    folder.finish()
    assert not folder.start("fit", config())
    assert folder.start("fit", config(max_steps=20))


def test_a_run_whose_task_had_another_name_goes_on(tmp_path: Path) -> None:
    names = [f"lightning_attr.tasks.{name}" for name in ("GroupedLeaveKOut", "GroupedRetraining", "LatentDiffusion")]
    members = [f"lightning_attr.tasks.{name}" for name in ("LeaveKOut", "Retraining", "LeaveKOut")]
    old, new, other = (
        {**config(), "model": {"class_path": name, "init_args": {"members": [{"class_path": member}]}}}
        for name, member in zip(names, members, strict=True)
    )
    run = RunFolder(tmp_path / "run")
    run.start("fit", new)
    manifest = (run.path / "manifest.json").read_text().replace("Retraining", "LeaveKOut")
    (run.path / "manifest.json").write_text(manifest)
    (run.path / "weights.safetensors").touch()
    assert run.start("fit", new)
    assert run.start("fit", old)
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == new
    with pytest.raises(UserError, match=r"tasks\.GroupedRetraining -> lightning_attr\.tasks\.LatentDiffusion"):
        run.start("fit", other)


def test_what_does_not_change_results_may_change(folder: RunFolder) -> None:
    other = config(log_every_n_steps=1)
    other["data"]["init_args"]["num_workers"] = 4
    assert folder.start("fit", other)


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("model", {"class_path": "Task", "init_args": {"learning_rate": 0.2}}, "learning_rate: 0.1 -> 0.2"),
        ("data", {"class_path": "Data", "init_args": {"batch_size": 3}}, "batch_size: 2 -> 3"),
        ("seed_everything", 1, "seed_everything: 0 -> 1"),
        ("trainer", {**config()["trainer"], "precision": "16-mixed"}, "precision: None -> 16-mixed"),
    ],
)
def test_what_changes_results_is_refused_with_the_difference(
    folder: RunFolder, key: str, change: object, words: str
) -> None:
    before = (folder.path / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="another config") as error:
        folder.start("fit", {**config(), key: change})
    assert words in str(error.value)
    assert "num_workers" not in str(error.value)
    assert (folder.path / "manifest.json").read_bytes() == before


def test_another_verb_is_refused(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="verb: fit -> test"):
        folder.start("test", config())


def test_a_run_without_results_may_start_with_another_config(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.start("fit", config())
    (tmp_path / "events.out.tfevents.1").touch()
    assert run.start("fit", {**config(), "seed_everything": 5})
    assert read_json(tmp_path / "manifest.json")["seed"] == 5


def test_a_folder_below_the_home_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning reads it: the manifest and the results lie together."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert RunFolder("~/runs/x").start("fit", config())
    assert (tmp_path / "home/runs/x/manifest.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@dataclass
class Relevant:
    store: InputPath
    attribute: str = "planted"


class Reads:
    """A task with arguments of all forms that files are named in."""

    def __init__(
        self,
        scores: list[InputPath] | None = None,
        curvature: InputPath | list[InputPath] | None = None,
        relevant: Relevant | None = None,
        weights: str = ".*",
        method: Any = None,
    ) -> None: ...


class ReadsMore(Reads):
    def __init__(self, changed: InputPath = "", **settings: Any) -> None: ...


def reading(**arguments: Any) -> dict[str, Any]:
    return {**config(), "model": {"class_path": f"{__name__}.ReadsMore", "init_args": arguments}}


def test_inputs_are_known_by_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "scores.safetensors"
    file.write_bytes(b"one")
    given = reading(scores=[str(file)])
    run = RunFolder(tmp_path / "run")
    assert run.start("fit", given)
    (run.path / "result").touch()
    assert run.start("fit", given)
    file.write_bytes(b"two")
    with pytest.raises(UserError, match=f"{file}: [0-9a-f]+ -> [0-9a-f]+"):
        run.start("fit", given)
    file.unlink()
    with pytest.raises(UserError, match=f"{file}: [0-9a-f]+ -> missing"):
        run.start("fit", given)


@pytest.mark.parametrize(
    ("key", "value", "file"),
    [
        ("changed", "unlearn/*/weights.safetensors", "unlearn/7/weights.safetensors"),
        ("curvature", "factors_ekfac", "factors_ekfac/lambda_matrix.safetensors"),
        ("curvature", "model", "model/unet/config.json"),
    ],
)
def test_files_of_patterns_and_folders_are_inputs(tmp_path: Path, key: str, value: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("one")
    given = reading(**{key: str(tmp_path / value)})
    run = RunFolder(tmp_path / "run")
    assert run.start("fit", given)
    (run.path / "result").touch()
    run.finish()
    assert not run.start("fit", given)
    (tmp_path / file).write_text("two")
    with pytest.raises(UserError, match=f"{tmp_path / file}: [0-9a-f]+ -> [0-9a-f]+"):
        run.start("fit", given)


def test_inputs_are_those_that_are_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a class, its bases, dataclasses in it and classes in it; not every string that is a file's name."""
    monkeypatch.chdir(tmp_path)
    for name in (".hidden", "a", "b", "c", "d", ".*"):
        (tmp_path / name).touch()
    inner = {"class_path": f"{__name__}.Reads", "init_args": {"curvature": ["d"], "weights": "a"}}
    given = reading(changed="a", scores=["b", "missing"], relevant={"store": "c", "attribute": "a"}, method=inner)
    assert sorted(input_files(given)) == ["a", "b", "c", "d"]
    assert dict(input_paths(ReadsMore, {"relevant": {"store": "c"}, "curvature": ["d", "e"]})) == {
        "relevant.store": "c",
        "curvature.0": "d",
        "curvature.1": "e",
    }


class Guarded:
    def __init__(self, other: PathLike[str], path: PathLike[str] | InputPath, paths: list[InputPath]) -> None: ...


def test_arguments_whose_types_are_imported_for_type_checkers_alone() -> None:
    found = input_paths(Guarded, {"other": "a", "path": "b", "paths": ["c"]})
    assert dict(found) == {"path": "b", "paths.0": "c"}


def test_all_files_that_shipped_configs_read_are_declared() -> None:
    """Every setting of a model or its data that lies below ``runs/`` is an input, unless it says where to write."""
    configs = [path for path in CONFIGS.rglob("*.yaml") if path.stem != "sweep"]
    found, expected = set(), set()
    for path in configs:
        given = yaml.safe_load(path.read_text())
        for section in ("model", "data"):
            part = given.get(section) or {}
            found |= set(declared_inputs({"class_path": "datamodules.LatentDataModule", **part}))
            names = {key: value for key, value in flatten(part) if "runs/" in str(value) or "${vars.run}" in str(value)}
            expected |= {value for key, value in names.items() if ".retrained." not in key}
    assert len(configs) > 40
    assert len(expected) > 30
    assert expected <= found
