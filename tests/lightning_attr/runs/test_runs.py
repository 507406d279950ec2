"""The folder of a run: what may change between two starts, and what may not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lightning_attr.artifacts import read_json, write_json
from lightning_attr.artifacts.inputs import InputPath, OutputPath, input_paths
from lightning_attr.errors import UserError
from lightning_attr.runs.checkpoints import AtomicCheckpointIO
from lightning_attr.runs.folder import RunFolder, read_manifest, run_seconds
from lightning_attr.runs.identity import declared_paths, differences, flatten, inputs, path_within

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


def before(run: RunFolder, *replaced: str) -> None:
    """Let the manifest of a run be one of before manifests had checksums and knew inputs by their keys."""
    path = run.path / "manifest.json"
    manifest = read_manifest(path)
    files = {
        str(path_within(manifest["settings"][key], name)): digest
        for key, digests in manifest["inputs"].items()
        for name, digest in digests.items()
    }
    write_json(path, {**{key: value for key, value in manifest.items() if key != "format"}, "inputs": files})
    if replaced:
        path.write_text(path.read_text().replace(*replaced))


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
    before(run, "Retraining", "LeaveKOut")
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


def test_a_finished_run_without_its_results_goes_on(folder: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    folder.finish(("weights.safetensors", "never made"))
    assert not folder.start("fit", config())
    (folder.path / "weights.safetensors").unlink()
    assert folder.start("fit", config())
    assert capfd.readouterr().err.endswith("weights.safetensors: missing; the run makes it again\n")


def test_a_result_that_is_another_one_is_refused(folder: RunFolder) -> None:
    folder.finish(("weights.safetensors",))
    (folder.path / "weights.safetensors").write_bytes(b"of another run")
    with pytest.raises(UserError, match=r"weights\.safetensors: found digest .*, expected .*; delete it"):
        folder.start("fit", config())


def test_the_seconds_of_a_run_are_known_where_it_made_the_file_in_one_go(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    result = run.path / "weights.safetensors"
    run.start("fit", config())
    result.touch()
    assert run_seconds(result) is None  # not finished
    manifest = read_manifest(run.path / "manifest.json")
    run.finish((result.name,))
    finished = read_manifest(run.path / "manifest.json")["finished"]
    seconds = (datetime.fromisoformat(finished) - datetime.fromisoformat(manifest["started"])).total_seconds()
    assert run_seconds(result) == seconds
    result.write_bytes(b"of another run")
    assert run_seconds(result) is None
    elsewhere = tmp_path / "weights.safetensors"
    elsewhere.touch()
    assert run_seconds(elsewhere) is None


def test_the_seconds_of_a_run_that_was_stopped_are_not_known(folder: RunFolder) -> None:
    folder.start("fit", config())
    folder.finish(("weights.safetensors",))
    assert run_seconds(folder.path / "weights.safetensors") is None


@pytest.mark.parametrize("key", ["max_steps", "max_epochs"])
def test_limits_below_what_the_run_has_made_are_refused(folder: RunFolder, key: str) -> None:
    """Else the manifest would say less than the weights are."""
    loops = {"fit_loop": {"epoch_progress": {"current": {"ready": 6}}}}
    AtomicCheckpointIO().save_checkpoint({"global_step": 6, "loops": loops}, folder.last_checkpoint)
    assert folder.start("fit", config(**{key: 6}))
    manifest = read_json(folder.path / "manifest.json")
    with pytest.raises(UserError, match=f"trainer.{key}: found 5, expected at least 6"):
        folder.start("fit", config(**{key: 5}))
    assert read_json(folder.path / "manifest.json") == manifest


def test_every_changed_bit_of_a_manifest_is_noticed(folder: RunFolder) -> None:
    path = folder.path / "manifest.json"
    whole, manifest = path.read_bytes(), read_manifest(path)
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with suppress(UserError):
            assert read_manifest(path) == manifest  # of white space


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
    with pytest.raises(UserError, match=f"model.init_args.scores.0 {file}: [0-9a-f]+ -> [0-9a-f]+"):
        run.start("fit", given)
    file.unlink()
    with pytest.raises(UserError, match=f"{file}: [0-9a-f]+ -> missing"):
        run.start("fit", given)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("value", "file"), [("a", "a"), ("model", "model/unet/config.json"), ("unlearn/*/w", "unlearn/7/w")]
)
def test_inputs_may_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, file: str, old: bool
) -> None:
    """Staged to a scratch folder, or named by an absolute path: what counts is what they hold."""
    for folder in ("home", "scratch"):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).write_text("one")
    monkeypatch.chdir(tmp_path / "home")
    run = RunFolder(tmp_path / "run")
    assert run.start("fit", reading(changed=value, scores=["missing"]))
    (run.path / "result").touch()
    if old:
        before(run)
    assert run.start("fit", reading(changed=str(tmp_path / "home" / value), scores=["missing"]))
    assert run.start("fit", reading(changed=str(tmp_path / "scratch" / value), scores=["missing"]))
    (tmp_path / "scratch" / file).write_text("two")
    with pytest.raises(UserError, match=f"changed {tmp_path / 'scratch' / file}: [0-9a-f]+ -> [0-9a-f]+"):
        run.start("fit", reading(changed=str(tmp_path / "scratch" / value), scores=["missing"]))
    with pytest.raises(UserError, match=r"scores\.0: missing -> other"):
        run.start("fit", reading(changed=value, scores=["other"]))


def test_where_results_go_does_not_count(tmp_path: Path) -> None:
    recorder: dict[str, Any] = {"class_path": "callbacks.LossDeltaRecorder", "init_args": {"base": "a", "captions": 1}}
    run = RunFolder(tmp_path)
    assert run.start("fit", config(callbacks=[recorder]))
    (run.path / "result").touch()
    recorder["init_args"] = {"base": "b", "captions": 1}
    assert run.start("fit", config(callbacks=[recorder]))
    recorder["init_args"] = {"base": "b", "captions": 2}
    with pytest.raises(UserError, match="captions: 1 -> 2"):
        run.start("fit", config(callbacks=[recorder]))


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
    assert {key.removeprefix("model.init_args.") for key in inputs(given)} == {
        "changed",
        "scores.0",
        "relevant.store",
        "method.init_args.curvature.0",
    }
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
    configs = [path for path in CONFIGS.rglob("*.yaml") if "model" in yaml.safe_load(path.read_text())]
    found, expected = set(), set()
    for path in configs:
        given = yaml.safe_load(path.read_text())
        for section in ("model", "data"):
            part = given.get(section) or {}
            named = {"class_path": "datamodules.LatentDataModule", **part}
            found |= {value for of in (InputPath, OutputPath) for _, value in declared_paths(named, of)}
            names = {key: value for key, value in flatten(part) if "runs/" in str(value) or "${vars.run}" in str(value)}
            expected |= set(names.values())
    assert len(configs) > 40
    assert len(expected) > 30
    assert expected <= found


@pytest.mark.parametrize(
    ("name", "was", "now", "same"),
    [
        ("weights", "cross_kv", None, True),
        ("weights", "attention", None, False),
        ("weights", None, "cross_kv", False),
        ("gradient_checkpointing", None, False, True),
        ("gradient_checkpointing", None, True, False),
        ("gradient_checkpointing", True, False, False),
        ("learning_rate", 0.1, None, False),
        ("learning_rate", None, False, False),
    ],
)
def test_defaults_that_were_written_out_or_not_said(name: str, was: Any, now: Any, same: bool) -> None:
    old, new = ({"verb": "fit", "inputs": {}, "settings": {f"model.init_args.{name}": value}} for value in (was, now))
    assert (list(differences(old, new, ())) == []) is same
