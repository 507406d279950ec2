"""Processes of a sweep are killed and stopped while they train: the same command ends it as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from miniature import Project
from sweeps import Miniature, alive, assert_same, is_training, wait_until, worker

NAMES = ("top/unlearning/query-0/k-3", "random/k-3/0")
SETTINGS = {"subsets": None, "full": None}

#: Long enough for a kill from outside in the middle.
STEPS = 250

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    sweep = Miniature(project, tmp_path_factory.mktemp("undisturbed"), STEPS, SETTINGS)
    sweep.run_here(range(len(NAMES)))
    return sweep


@pytest.fixture
def sweep(project: Project, tmp_path: Path) -> Miniature:
    return Miniature(project, tmp_path / "miniature", STEPS, SETTINGS)


def both_train(sweep: Miniature, process: subprocess.Popen[str]) -> list[int]:
    """Wait until both entries train, and return their processes."""
    wait_until(lambda: all(is_training(sweep, name)() for name in NAMES), process)
    return [worker(sweep.status(name)) for name in NAMES]


def assert_complete(sweep: Miniature, process: subprocess.Popen[str], undisturbed: Miniature) -> None:
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "2/2 done" in printed
    assert (sweep.folder / "pack.json").exists()
    for name in NAMES:
        assert_same(sweep.entry(name), undisturbed.entry(name))


def test_a_worker_that_is_killed(sweep: Miniature, undisturbed: Miniature) -> None:
    process = sweep.start()
    first, second = both_train(sweep, process)
    os.kill(first, signal.SIGKILL)
    assert_complete(sweep, process, undisturbed)
    assert not alive(second)
    # The other entry may have been at its end before its process was stopped.
    assert "resuming from" in (sweep.entry(NAMES[0]) / "log.txt").read_text()


def test_the_command_that_is_killed_and_stopped(sweep: Miniature, undisturbed: Miniature) -> None:
    """By SIGKILL, by SIGTERM and by Ctrl-C, and then not."""
    for sends, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = sweep.start()
        workers = both_train(sweep, process)
        process.send_signal(sends)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == status, printed
        assert "Traceback" not in printed
        wait_until(lambda pids=workers: not any(alive(pid) for pid in pids), seconds=60)  # type: ignore[misc]
        assert [sweep.status(name).state for name in NAMES] == ["waiting", "waiting"]  # stopped in order, and saved
    assert_complete(sweep, sweep.start(), undisturbed)
    log = (sweep.entry(NAMES[0]) / "log.txt").read_text()
    assert log.count("resuming from") == 3
    assert "Traceback" not in log


def test_a_worker_that_is_killed_again_and_again(sweep: Miniature) -> None:
    """Its entry counts as failed in the end; the other one is done."""
    process = sweep.start()
    for _ in range(3):
        wait_until(is_training(sweep, NAMES[0]), process)
        first = worker(sweep.status(NAMES[0]))
        os.kill(first, signal.SIGKILL)
        wait_until(lambda pid=first: worker(sweep.status(NAMES[0])) != pid, process)  # type: ignore[misc]
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 1, printed
    assert "its process was killed 3 times" in printed
    assert [sweep.status(name).state for name in NAMES] == ["failed", "done"]
    assert not (sweep.folder / "pack.json").exists()
