"""The tool that counts what becomes of mistakes, damage and kills: what it calls right and wrong."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_attr.abc.layout import read_layout
from lightning_attr.artifacts import save_tensors
from lightning_attr.console import print_table
from tools.trials import flips, known, own, settings, words
from tools.trials.command import read, table
from tools.trials.contents import contents
from tools.trials.process import Ended, Kill, forked
from tools.trials.project import configs, merged, put, stages
from tools.trials.trial import Bench
from tools.trials.verdict import Outcome, verdict


@pytest.mark.parametrize(
    ("status", "err", "right", "expected"),
    [
        (1, "a warning\nerror: found 3, expected 4\n", False, "clear"),
        (1, "error: found 3, expected 4\n", True, "clear"),
        (0, "", True, "harmless"),
        (0, "", False, "silent"),
        (1, "Traceback (most recent call last):\nKeyError: 3\n", False, "traceback"),
        (0, "Traceback (most recent call last):\nKeyError: 3\n", True, "traceback"),
        (-signal.SIGBUS, "", True, "signal"),
        (None, "", True, "slow"),
        (1, f"error: {'x' * 2000}", False, "long"),
        (1, "", False, "wordless"),
        (2, "error: a", False, "wordless"),
        (1, "error: a\nerror: b", False, "wordless"),
    ],
)
def test_verdicts(status: int | None, err: str, right: bool, expected: str) -> None:
    assert verdict(Ended(status, "", err, 0.1), right) == expected


def test_processes_end_as_they_do(tmp_path: Path) -> None:
    def fail() -> None:
        print("before")
        raise KeyError(Path.cwd().name)

    ended = forked(fail, tmp_path, 60)
    assert (ended.status, ended.out) == (1, "before\n")
    assert f"KeyError: '{tmp_path.name}'" in ended.err
    assert forked(signal.pause, tmp_path, 60, Kill(signal.SIGKILL, 0.05)).status == -signal.SIGKILL
    assert forked(signal.pause, tmp_path, 0.2).status is None


@pytest.mark.parametrize("name", sorted({name for name, _ in flips.DAMAGES}))
def test_damage_changes_a_file(name: str) -> None:
    data, damage = bytes(range(1, 256)) * 40, dict(flips.DAMAGES)[name]
    assert all(damage(data, Random(seed)) != data for seed in range(50))
    assert damage(data, Random(7)) == damage(data, Random(7))


def test_one_bit_is_flipped() -> None:
    data = bytes(5000)
    assert all(sum(byte.bit_count() for byte in flips.bit(data, Random(seed))) == 1 for seed in range(20))


def test_every_setting_is_tried_in_every_wrong_way() -> None:
    kinds = {kind for kind, _ in settings.wrong_values("learning_rate", 0.1)}
    assert kinds >= {"negative", "nan", "inf", "banana", "mapping", "list", "null", "empty", "huge"}
    assert {kind for kind, _ in settings.wrong_values("store", "runs/a.lmdb")} >= {
        "missing",
        "folder",
        "other kind",
        "nul",
    }
    assert dict(settings.wrong_values("draws", {"timesteps": 2}))["unknown"] == {"timesteps": 2, "no_such_key": 1}
    assert settings.has_meaning("train/data.init_args.seed", "zero")
    assert not settings.has_meaning("train/model.init_args.learning_rate", "nan")


def test_the_project_is_made_of_the_shipped_configs() -> None:
    of = {stage.config for stage in stages().values() if stage.config is not None}
    assert of == configs().keys()
    assert configs()["leave_k_out"]["data"]["init_args"]["exclude"]["top"] == 4
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    config = {"a": [{"b": 1}], "c": None}
    put(config, "a.0.b", 2)
    put(config, "c.d", 3)
    assert config == {"a": [{"b": 2}], "c": {"d": 3}}


def test_a_bench_is_restored(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    (whole / "runs/a").mkdir(parents=True)
    for name in ("one", "two"):
        (whole / "runs/a" / name).write_text(name)
    bench = Bench(whole, tmp_path / "bench")
    bench.restore()
    (bench.folder / "runs/a/one").write_text("other")
    (bench.folder / "runs/a/two").unlink()
    (bench.folder / "runs/new/x").mkdir(parents=True)
    os.mkfifo(bench.folder / "runs/new/pipe")
    assert bench.changed() == ["runs/a/one", "runs/a/two"]
    bench.settle()
    assert bench.changed() == []
    bench.restore()
    assert sorted(path.read_text() for path in bench.folder.rglob("*") if path.is_file()) == ["one", "two"]
    assert sorted(os.listdir(bench.folder / "runs")) == ["a"]


def test_contents_are_tensors_and_settings(tmp_path: Path) -> None:
    """Times do not count, values do."""
    digests = []
    for number, (value, about) in enumerate([(1.0, {"k": 1}), (1.0, {"k": 1}), (2.0, {"k": 1}), (1.0, {"k": 2})]):
        run = tmp_path / str(number)
        save_tensors(run / "scores.safetensors", "scores", {"a": torch.full((2,), value)}, about)
        (run / "metrics.json").write_text(json.dumps({"metrics": value, "started": number}))
        (run / "manifest.json").write_text(str(number))
        digests.append(contents(run, ["."]))
    assert digests[0].keys() == {"scores.safetensors", "metrics.json"}
    assert digests[0] == digests[1]
    assert digests[0] != digests[2] != digests[3] != digests[0]
    (tmp_path / "0/scores.safetensors").write_bytes(b"x")
    assert "Error" in contents(tmp_path / "0", ["."])["scores.safetensors"]


def test_outcomes_are_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [Outcome(f"{kind}/x/{n}", "silent" if n else "clear", "fit", "", 1.0) for kind in "ab" for n in range(3)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(each.as_json()) + "\n" for each in [*found, found[0]]))
    assert read(log) == found
    print_table(table(read(log)))
    assert "what became of trials" in capsys.readouterr().out


def test_names_are_unique() -> None:
    names = [trial.name for trial in words.trials(Path())]
    assert len(names) == len(set(names)) > 500


def test_what_a_user_brings_is_tried(tmp_path: Path) -> None:
    """Every file that is left open in a command line is there to be given, and every reader is a stage."""
    kinds = {kind for _, right in own.OPEN.values() for kind in right if kind != "*"}
    assert kinds <= words.FILES.keys()
    assert {reader.removesuffix(" anew") for *_, read_by, _ in own.inputs() for reader in read_by} <= stages().keys()
    path = tmp_path / "lora.safetensors"
    save_file({name: torch.ones(2, 2) for name in "abc"}, path)
    tried = dict(own.tensors(path, str(path), {"missing": lambda tensor: None, "zero": torch.zeros_like}))
    assert set(tried) == {f"{name} {how}" for name in "abc" for how in ("missing", "zero")}
    tried["b missing"]()
    tried["c zero"]()
    assert {name: float(value.sum()) for name, value in load_file(path).items()} == {"a": 4.0, "c": 0.0}


def test_what_is_known_is_tried() -> None:
    """Every file that is left open in a command line is there to be given, and every reader is known."""
    kinds = {kind for _, right in known.OPEN.values() for kind in right if kind != "*"}
    assert kinds <= words.FILES.keys()
    read_by = [*known.SETTINGS.values(), *known.ARTEFACTS.values(), *(names for _, _, names, _ in known.inputs())]
    assert {name for names in read_by for name in names} <= flips.readers().keys()
    assert known.NUMBERS.keys() <= known.ANEW.keys()


def test_the_published_layout_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known.make()
    tuned = read_layout(Path(known.LAYOUT), Path(known.ENTRIES))
    assert [(len(each.exemplars), len(each.queries["object"])) for each in tuned] == [(2, 2), (2, 2)]
