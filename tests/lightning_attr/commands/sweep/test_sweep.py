"""Sweeps of retrainings: what they train, and that they are what the same runs would be by themselves."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import assert_says, snapshot
from lightning.pytorch.utilities.exceptions import SIGTERMException
from miniature import Project
from rich.console import Console
from sweeps import NAMES, Miniature, assert_same, here

from lightning_attr.artifacts import load_tensors, write_atomically, write_json
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.cli import run_stage
from lightning_attr.commands.sweep.board import Board, progress_line
from lightning_attr.commands.sweep.command import main, parsed_options
from lightning_attr.commands.sweep.folder import Status, SweepFolder, read_status, timed_status
from lightning_attr.commands.sweep.plan import Full, Random, Subsets, Sweep, Top, entries, store_path
from lightning_attr.commands.sweep.worker import stop
from lightning_attr.console import run as exit_with_status
from lightning_attr.digests import file_digest
from lightning_attr.ground_truth.pack import Pack
from lightning_attr.runs.lock import locked


@pytest.fixture(scope="module")
def finished(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """A sweep whose entries were all run, one command each, and its pack."""
    sweep = Miniature(project, tmp_path_factory.mktemp("finished"))
    sweep.run_here(range(len(NAMES)))
    main(sweep.args())
    return sweep


@pytest.fixture
def sweep(project: Project, tmp_path: Path) -> Miniature:
    return Miniature(project, tmp_path / "miniature")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for another process."""
    monkeypatch.setattr("lightning_attr.commands.sweep.command.PATIENCE", 0.0)
    monkeypatch.setattr("lightning_attr.commands.sweep.folder.PATIENCE", 0.0)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries run in this process, as workers would run them."""
    monkeypatch.setattr("lightning_attr.commands.sweep.command.run_local", here)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command that must end with status 1, and return the last line that it prints on stderr, its error."""

    def run(args: list[str]) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            exit_with_status(lambda: main(args))
        printed = capfd.readouterr().err
        assert ended.value.code == 1
        assert "Traceback" not in printed
        message = printed.splitlines()[-1]
        assert message.startswith("error: ")
        return message

    return run


# --- What is trained --------------------------------------------------------------------------------------------------


def test_entries_and_their_order(finished: Miniature, capfd: pytest.CaptureFixture[str]) -> None:
    main(finished.args("--list"))
    rows = [line.split() for line in capfd.readouterr().out.splitlines() if "done" in line]
    assert [(row[1], row[3]) for row in rows] == [(str(index), name) for index, name in enumerate(NAMES)]


def plan(project: Project, **settings: Any) -> dict[str, dict[str, Any]]:
    sweep = Sweep(
        folder="sweep",
        train=[str(project.root / "train.yaml")],
        original=str(project.checkpoint),
        queries=str(project.queries),
        **settings,
    )
    return {entry.name: dict(entry.settings) for entry in entries(sweep)}


def seeds(plan: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    return {name: tuple(s[part]["init_args"].get("seed") for part in ("model", "data")) for name, s in plan.items()}


def test_models_share_seeds_unless_told_otherwise(project: Project) -> None:
    parts = {
        "top": Top({"unlearning": str(project.scores)}, [2], [0]),
        "random": Random([2, 3], 2),
        "subsets": Subsets(2, seeds=2),
    }
    assert seeds(plan(project, **parts)) == {
        "top/unlearning/query-0/k-2": (None, None),
        **{f"random/k-{k}/{index}": (None, None) for k in (2, 3) for index in (0, 1)},
        **{f"subset/{index}/seed-0": (None, None) for index in (0, 1)},
        **{f"subset/{index}/seed-1": (1, 1) for index in (0, 1)},
    }
    own = seeds(plan(project, **parts, shared=False))
    assert len({seed for seed, _ in own.values()}) == len(own)
    assert all(model == data for model, data in own.values())
    more = seeds(plan(project, **{**parts, "random": Random([1, 2, 3], 3)}, shared=False))
    assert own.items() <= more.items()  # those of entries that were there already stay


def test_removals_under_several_training_seeds(project: Project) -> None:
    made = seeds(plan(project, random=Random([2], 2, seeds=3), full=Full(2)))
    assert made == {
        **{f"random/k-2/{index}": (None, None) for index in (0, 1)},
        **{f"seed-{seed}/random/k-2/{index}": (seed, seed) for seed in (1, 2) for index in (0, 1)},
        **{f"full/seed-{seed}": (seed, seed) for seed in (1, 2)},
    }
    removed = plan(project, random=Random([2], 1, seeds=2), full=Full(1), regenerate=False)
    assert all(settings["model"]["init_args"]["regenerate"] is False for settings in removed.values())
    first, second = (removed[name]["data"]["init_args"]["exclude"] for name in ("random/k-2/0", "seed-1/random/k-2/0"))
    assert first == second
    top = plan(project, top=Top({"unlearning": str(project.scores)}, [2, 3], [0], seeds=2), full=Full(1))
    names = [f"top/unlearning/query-0/k-{k}" for k in (2, 3)]
    again = [f"seed-1/{name}" for name in names]
    assert seeds(top) == {**dict.fromkeys(names, (None, None)), **dict.fromkeys([*again, "full/seed-1"], (1, 1))}
    assert [top[name]["data"]["init_args"]["exclude"] for name in names] == [
        top[name]["data"]["init_args"]["exclude"] for name in again
    ]


def test_what_is_left_out(finished: Miniature) -> None:
    removed = {name: load_tensors(finished.entry(name) / "retraining.safetensors") for name in NAMES}
    counts = {name: (settings["method"], len(tensors["removed_id"])) for name, (tensors, settings) in removed.items()}
    methods = ("unlearning", "random", "subset", "subset", "full")
    assert list(counts.values()) == list(zip(methods, (3, 3, 20, 20, 0), strict=True))
    first, second = (removed[f"subset/0/seed-{seed}"][0] for seed in (0, 1))
    assert torch.equal(first["removed_id"], second["removed_id"])
    assert not torch.equal(first["retrained_losses"], second["retrained_losses"])
    made_again = {name for name, (tensors, _) in removed.items() if "retrained_latent" in tensors}
    assert made_again == {name for name in NAMES if not name.startswith("subset/")}  # an LDS is of losses alone


@pytest.mark.slow
def test_an_ordinary_run_of_an_entry_gives_the_same(finished: Miniature, tmp_path: Path) -> None:
    for name in ("top/unlearning/query-0/k-3", "subset/0/seed-1"):
        configs = [finished.root / "train.yaml", finished.entry(name) / "entry.yaml"]
        words = [word for config in configs for word in ("-c", str(config))]
        run_stage(["fit", *words, "--trainer.default_root_dir", str(tmp_path / name)])
        assert_same(tmp_path / name, finished.entry(name))


# --- Going on ---------------------------------------------------------------------------------------------------------


def test_finished_entries_are_left_alone(finished: Miniature) -> None:
    before = snapshot(finished.folder / "entries")
    main(finished.args())
    main(finished.args("--index", "1"))
    assert snapshot(finished.folder / "entries") == before


def test_the_pack_holds_all(finished: Miniature, capfd: pytest.CaptureFixture[str]) -> None:
    main(finished.args())
    printed = capfd.readouterr().out
    assert_says(printed, "5/5 done", finished.folder / "pack", "lightning-attr evaluate", finished.project.scores)
    pack = Pack.load(finished.folder / "pack")
    assert tuple(model.name for model in pack.models) == NAMES
    assert not pack.losses.isnan().any()


def test_another_config_is_refused_with_the_difference(
    finished: Miniature, refused: Callable[[list[str]], str]
) -> None:
    before = snapshot(finished.folder)
    other = Miniature(finished.project, finished.root, settings={"evaluation": {"timesteps": 5}})
    assert_says(refused(other.args()), finished.folder, "another config", "evaluation.timesteps: 4 -> 5")
    other = Miniature(finished.project, finished.root, steps=13)
    assert_says(refused(other.args("--index", "0")), "training.trainer.max_steps: 12 -> 13")
    other = Miniature(finished.project, finished.root, settings={"subsets": {"count": 1, "fraction": 0.25}})
    assert_says(refused(other.args()), "entries.subset/0/seed-0.data.init_args.subset.fraction: 0.5 -> 0.25")
    assert snapshot(finished.folder) == before


def test_a_sweep_of_before_its_task_had_this_name_goes_on(finished: Miniature) -> None:
    """Its record had no checksum, and named files by their paths."""
    record = finished.folder / "sweep.json"
    text = record.read_text()
    old = read_record(record, {}, "record")
    sweep = parsed_options(finished.args()).sweep
    scores = {path: file_digest(path) for path in sweep.top.scores.values()}
    settings = {entry.name: dict(entry.settings) for entry in entries(sweep)}
    write_json(record, {"settings": old["settings"], "scores": scores, "entries": settings})
    text_of_old = record.read_text().replace("tasks.Retraining", "tasks.LeaveKOut")
    assert text_of_old.count('"regenerate": false') == 2  # which subsets did not say either
    record.write_text(re.sub(r',\s*"regenerate": false', "", text_of_old))
    main(finished.args())  # refuses a record of other settings
    record.write_text(text)


def test_files_of_a_sweep_may_lie_elsewhere(
    finished: Miniature, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    """Staged to another folder, and the training's named by ``${vars.NAME}``: what counts is what they hold."""
    before = snapshot(finished.folder)
    staged = {path: tmp_path / path.name for path in (finished.project.store, finished.project.queries)}
    for path, copy in staged.items():
        shutil.copy(path, copy)
    arguments = finished.args("--list")
    for name in ("train", "sweep"):
        config = finished.root / f"{name}.yaml"
        text = config.read_text()
        for path, copy in staged.items():
            text = text.replace(str(path), str(copy) if name == "sweep" else f"${{vars.scratch}}/{copy.name}")
        config.write_text(text if name == "sweep" else f"vars: {{scratch: {tmp_path}}}\n{text}")
    sweep = parsed_options(arguments).sweep
    assert store_path(sweep) == str(tmp_path / "train.lmdb")
    SweepFolder(sweep, entries(sweep)).start()
    changed = {path for path, when in snapshot(finished.folder).items() if before[path] != when}
    assert {Path(path).name for path in changed} <= {"sweep.json", "entry.yaml"}
    text = (finished.root / "train.yaml").read_text()
    (finished.root / "train.yaml").write_text(text.replace("vars: {scratch:", "vars: {other:"))
    assert_says(refused(arguments), "scratch", "not found")


def test_a_changed_bit_of_the_record_is_noticed(finished: Miniature, refused: Callable[[list[str]], str]) -> None:
    record = finished.folder / "sweep.json"
    whole = record.read_text()
    record.write_text(whole.replace('"max_steps": 12', '"max_steps": 13'))
    assert_says(refused(finished.args()), record, "damaged, its checksum does not match")
    record.write_text(whole)


@pytest.mark.parametrize("text", ["[]", "{", '{"state": 3}', '{"format": "1", "state": "done"}'])
def test_an_entry_whose_status_is_damaged_waits(sweep: Miniature, capfd: pytest.CaptureFixture[str], text: str) -> None:
    sweep.settings = {"top": None, "subsets": None, "full": None, "random": {"k": [2]}}
    folder = sweep.entry("random/k-2/0")
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(text)
    options = parsed_options(sweep.args()).sweep
    SweepFolder(options, entries(options)).start()
    assert "the entry is run again" in capfd.readouterr().err
    assert sweep.status("random/k-2/0").state == "waiting"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_entries_may_be_added_and_taken_away(sweep: Miniature) -> None:
    few = {"top": None, "subsets": None, "full": None}
    sweep.settings = {**few, "random": {"k": [3]}}
    main(sweep.args())
    before = snapshot(sweep.folder / "entries")
    sweep.settings = {**few, "random": {"k": [3, 2]}}
    main(sweep.args())
    after = snapshot(sweep.folder / "entries")
    assert before.items() <= after.items()
    assert [model.name for model in Pack.load(sweep.folder / "pack").models] == ["random/k-3/0", "random/k-2/0"]
    sweep.settings = {**few, "random": {"k": [2]}}
    main(sweep.args())
    assert snapshot(sweep.folder / "entries") == after
    assert [model.name for model in Pack.load(sweep.folder / "pack").models] == ["random/k-2/0"]


def test_what_a_killed_process_left_as_running_waits(sweep: Miniature) -> None:
    sweep.settings = {"top": None, "subsets": None, "full": None, "random": {"k": [2, 3]}}
    folder = sweep.entry("random/k-3/0")
    write_json(folder / "status.json", {"state": "running", "where": "elsewhere:1"})
    sweep.run_here([0])
    assert sweep.status("random/k-3/0").state == "waiting"


# --- Failing ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_an_entry_that_fails_does_not_keep_others_from_running(
    sweep: Miniature, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep.settings = {"top": None, "subsets": None, "full": None, "random": {"k": [2, 3]}}
    checkpoint = sweep.entry("random/k-2/0") / "checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("no checkpoint")
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        exit_with_status(lambda: main(sweep.args()))
    printed = capfd.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" not in printed
    log = sweep.entry("random/k-2/0") / "log.txt"
    reason, message = printed.splitlines()[-2:]
    assert_says(reason, "random/k-2/0: ", "found checkpoints/last.ckpt and no manifest.json", f"(log: {log})")
    assert_says(message, sweep.folder, "1 of 2 entries are not done, so no pack is written")
    assert sweep.status("random/k-3/0").state == "done"
    assert not list(sweep.folder.glob("pack*"))
    checkpoint.unlink()
    main(sweep.args())
    assert sweep.status("random/k-2/0").state == "done"
    assert (sweep.folder / "pack.json").exists()


def test_an_entry_that_fails_by_index(sweep: Miniature, refused: Callable[[list[str]], str]) -> None:
    train = sweep.project.configs()["train"]
    train["model"]["init_args"]["learning_rate"] = 1e30
    args = sweep.args("--index", "1")
    (sweep.root / "train.yaml").write_text(yaml.safe_dump(train))
    assert_says(refused(args), "finite")
    status = sweep.status("random/k-3/0")
    assert status.state == "failed"
    assert "finite" in status.error


@pytest.mark.usefixtures("at_once", "in_process")
def test_an_entry_that_another_process_runs(sweep: Miniature, refused: Callable[[list[str]], str]) -> None:
    sweep.settings = {"top": None, "subsets": None, "full": None, "random": {"k": [2]}}
    folder = sweep.entry("random/k-2/0")
    held, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(folder, held, go))
    thread.start()
    held.wait()
    write_json(folder / "status.json", {"state": "running", "where": "elsewhere:1"})
    try:
        assert_says(refused(sweep.args("--index", "0")), folder, f"another process is running it, {platform.node()}:")
    finally:
        go.set()
        thread.join()
    assert sweep.status("random/k-2/0").state == "running"


def hold(folder: Path, held: threading.Event, go: threading.Event) -> None:
    """Hold a folder, as another process would, until told to let go."""
    with locked(folder):
        held.set()
        go.wait(20)


def test_waits_a_little_for_the_process_before(sweep: Miniature) -> None:
    sweep.settings = {"top": None, "subsets": None, "full": None, "random": {"k": [2]}}
    held, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(sweep.entry("random/k-2/0"), held, go))
    thread.start()
    held.wait()
    threading.Timer(1.0, go.set).start()
    sweep.run_here([0])
    assert go.is_set()
    assert sweep.status("random/k-2/0").state == "done"
    thread.join()


MISTAKES: dict[str, tuple[dict[str, Any], list[str], tuple[str, ...]]] = {
    "an index that is not there": ({}, ["--index", "5"], ("index: found 5, expected 0 to 4",)),
    "a negative index": ({}, ["--index=-1"], ("index: found -1, expected 0 to 4",)),
    "no entries": ({"top": None, "random": None, "subsets": None, "full": None}, [], ("found nothing to train",)),
    "a key of another name": ({"randoms": {"k": [1]}}, [], ("randoms",)),
    "a key that is missing": ({"full": {}}, [], ("full", "seeds")),
    "no file of the training": ({"train": ["none.yaml"]}, [], ("train: found no file none.yaml",)),
    "no original": ({"original": "none.ckpt"}, [], ("original: found no file none.ckpt",)),
    "no queries": ({"queries": "none.lmdb"}, [], ("none.lmdb",)),
    "no scores": ({"top": {"scores": {"a": "none.safetensors"}, "k": [1]}}, [], ("none.safetensors",)),
    "a query without scores": ({"top": {"scores": {"unlearning": "SCORES"}, "k": [1], "queries": [9]}}, [], ("9",)),
    "more than there is": ({"random": {"k": [41]}}, [], ("random", "found 41", "40")),
    "more of the top than there is": ({"top": {"scores": {"a": "SCORES"}, "k": [41], "queries": [0]}}, [], ("41",)),
    "a fraction above 1": ({"subsets": {"count": 1, "fraction": 1.5}}, [], ("fraction: found 1.5",)),
    "no models": ({"random": {"k": [1], "count": 0}}, [], ("random.count: found 0, expected 1 to 100000",)),
    "seeds without models of all samples": (
        {"random": {"k": [2], "seeds": 3}},
        [],
        ("random.seeds: found 3, but full.seeds is 1; expected full.seeds of at least 2",),
    ),
    "seeds of the top without models of all samples": (
        {"top": {"scores": {"a": "SCORES"}, "k": [1], "queries": [0], "seeds": 3}},
        [],
        ("top.seeds: found 3, but full.seeds is 1",),
    ),
    "several seeds where each has its own": (
        {"random": {"k": [2], "seeds": 2}, "shared": False},
        [],
        ("random.seeds: found 2 with shared: false, expected 1",),
    ),
    "a k twice": ({"random": {"k": [2, 2]}}, [], ("random/k-2/0 2 times",)),
    "a reserved name": ({"top": {"scores": {"subset": "SCORES"}, "k": [1]}}, [], ("found method 'subset'",)),
    "no workers": ({}, ["--workers", "0"], ("workers", "0")),
    "GPUs without Ray": ({}, ["--gpus", "1"], ("gpus: found 1 without ray",)),
    "no such option": ({}, ["--worker", "1"], ("--worker",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(sweep: Miniature, refused: Callable[[list[str]], str], mistake: str) -> None:
    settings, options, words = MISTAKES[mistake]
    sweep.settings = json.loads(json.dumps(settings).replace("SCORES", str(sweep.project.scores)))
    assert_says(refused(sweep.args(*options)), *words)
    assert not sweep.folder.exists()


def test_a_config_that_is_no_yaml(sweep: Miniature, refused: Callable[[list[str]], str]) -> None:
    for name in ("train", "sweep"):
        args = sweep.args()
        (sweep.root / f"{name}.yaml").write_text("a: [1")
        assert_says(refused(args), sweep.root / f"{name}.yaml", "not YAML")


def test_without_ray(sweep: Miniature, refused: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert_says(refused(sweep.args("--ray", "local")), "ray: found no such package", "[ray]")


# --- Groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_groups_give_the_same_up_to_rounding(sweep: Miniature, finished: Miniature) -> None:
    main(sweep.args("--group", "3"))
    assert len(list(sweep.folder.glob("groups/*/group.yaml"))) == 2
    assert tuple(model.name for model in Pack.load(sweep.folder / "pack").models) == NAMES
    for name in NAMES:
        ours, theirs = (load_tensors(s.entry(name) / "retraining.safetensors")[0] for s in (sweep, finished))
        assert torch.equal(ours["removed_id"], theirs["removed_id"])
        torch.testing.assert_close(ours["retrained_losses"], theirs["retrained_losses"], rtol=1e-3, atol=1e-5)
    before = snapshot(sweep.folder / "entries")
    main(sweep.args("--group", "2"))
    assert snapshot(sweep.folder / "entries") == before


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_members_of_a_group_that_fails_run_alone(sweep: Miniature, finished: Miniature) -> None:
    """Groups count steps alone; this training counts epochs."""
    train = sweep.project.configs()["train"]
    train["trainer"] |= {"max_epochs": 1, "max_steps": -1}
    sweep.settings = {"top": None, "subsets": None, "full": None, "random": {"k": [2, 3]}}
    args = sweep.args("--group", "2")
    (sweep.root / "train.yaml").write_text(yaml.safe_dump(train))
    main(args)
    assert [sweep.status(f"random/k-{k}/0").state for k in (2, 3)] == ["done", "done"]
    assert (sweep.folder / "pack.json").exists()


# --- What it shows ----------------------------------------------------------------------------------------------------


def test_progress_counts_what_runs() -> None:
    def statuses(done: int, running: list[float], waiting: int) -> list[Status]:
        return [
            *[Status("done", seconds=100, since=1090)] * done,
            *[Status("running", since=since) for since in running],
            *[Status("waiting")] * waiting,
        ]

    assert progress_line(statuses(0, [1000, 1000], 3), 1000, 1050) == "0/5 done"
    # Two processes from 1000 on: one has made its first model, the other one is as far, and each begins another.
    assert progress_line(statuses(1, [1000], 6), 1000, 1100) == "1/8 done, 72 models/hour, 0:05:00 left"
    assert progress_line(statuses(2, [1100, 1100], 4), 1000, 1150) == "2/8 done, 72 models/hour, 0:04:10 left"
    # A later command does not count what was done before it.
    earlier = [Status("done", seconds=100, since=500)] * 5
    assert progress_line([*earlier, *statuses(0, [1000], 2)], 1000, 1050) == "5/8 done"
    assert progress_line([*earlier, *statuses(1, [1100], 1)], 1000, 1150).endswith("36 models/hour, 0:02:30 left")
    assert progress_line(earlier, 1000, 1001) == "5/5 done"


def test_the_table_on_a_narrow_terminal(finished: Miniature) -> None:
    folder = SweepFolder(Sweep(str(finished.folder), [], "", ""), [])
    console = Console(width=60, record=True)
    console.print(Board(folder).table(), soft_wrap=True)
    assert f"{finished.folder}: 0/0 done" in console.export_text()


def test_a_second_signal_does_not_lose_that_an_entry_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that breaks terminates workers that are stopping already."""

    def interrupted(path: Path, content: bytes) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write_atomically(path, content)

    def stopped() -> None:
        with timed_status(tmp_path):
            monkeypatch.setattr("lightning_attr.artifacts.tensors.write_atomically", interrupted)
            raise SIGTERMException

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SIGTERMException):
            stopped()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read_status(tmp_path).state == "waiting"


@pytest.mark.parametrize("state", ["running", "done"])
def test_a_signal_while_a_status_is_written_leaves_an_entry_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Writing takes time: a run that nobody runs must not be taken for one whose process was killed."""
    from lightning_attr.commands.sweep import folder

    def interrupted(path: Path, record: dict[str, Any]) -> None:
        if record["state"] == state:
            raise SIGTERMException(143)
        write_record(path, record)

    monkeypatch.setattr(folder, "write_record", interrupted)
    with pytest.raises(SIGTERMException), timed_status(tmp_path):
        pass
    assert read_status(tmp_path).state == "waiting"


def test_a_status_is_whole_at_any_moment(finished: Miniature) -> None:
    """Read one while it is written all the time."""
    from lightning_attr.commands.sweep.folder import write_status

    folder = finished.root / "written"
    write_status(folder, "running")
    end = threading.Event()

    def write() -> None:
        while not end.is_set():
            write_status(folder, "failed", "a long reason " * 1000)

    thread = threading.Thread(target=write)
    thread.start()
    deadline = time.monotonic() + 0.5
    from lightning_attr.commands.sweep.folder import read_status

    while time.monotonic() < deadline:
        assert read_status(folder).state in ("running", "failed")
    end.set()
    thread.join()
