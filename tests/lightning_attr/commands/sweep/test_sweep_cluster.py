"""A sweep on a Ray cluster of several nodes, one of which dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from miniature import Project
from sweeps import Miniature, alive, assert_same, is_training, wait_until, worker

NAMES = ("top/unlearning/query-0/k-3", "random/k-3/0")
SETTINGS = {"subsets": None, "full": None}
STEPS = 300  # enough to be under way still when a signal has gone through Ray on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray with a head that runs nothing."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    sweep = Miniature(project, tmp_path_factory.mktemp("undisturbed"), STEPS, SETTINGS)
    sweep.run_here(range(len(NAMES)))
    return sweep


def test_a_node_dies_in_the_middle_of_a_training(
    cluster: Any, project: Project, undisturbed: Miniature, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    sweep = Miniature(project, tmp_path / "sweep", STEPS, SETTINGS)
    process = sweep.start("--ray", cluster.address)
    wait_until(lambda: all(is_training(sweep, name)() for name in NAMES), process)
    before = {name: sweep.status(name) for name in NAMES}
    cluster.remove_node(nodes[0], allow_graceful=False)
    wait_until(lambda: not all(alive(worker(status)) for status in before.values()), process)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "2/2 done" in printed
    moved = [name for name in NAMES if sweep.status(name).where != before[name].where]
    assert len(moved) == 1
    assert "resuming from" in (sweep.entry(moved[0]) / "log.txt").read_text()
    for name in NAMES:
        assert_same(sweep.entry(name), undisturbed.entry(name))


@pytest.mark.parametrize(("sends", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_tasks_save_when_the_command_is_stopped(
    project: Project, undisturbed: Miniature, tmp_path: Path, sends: signal.Signals, status: int
) -> None:
    sweep = Miniature(project, tmp_path / "sweep", STEPS, SETTINGS)
    process = sweep.start("--ray", "local")
    wait_until(is_training(sweep, NAMES[0]), process)
    pid = worker(sweep.status(NAMES[0]))
    os.kill(process.pid, sends)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == status, printed
    assert "Traceback" not in printed
    wait_until(lambda: not alive(pid), seconds=30)
    assert sweep.status(NAMES[0]).state == "waiting"  # it ended in order, and saved
    sweep.run_here(range(len(NAMES)))
    assert_same(sweep.entry(NAMES[0]), undisturbed.entry(NAMES[0]))
