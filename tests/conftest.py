"""A project in miniature: stores, configs, and every stage run once."""

from __future__ import annotations

import os

# The bits of a sum depend on the number of threads. Lightning gives one to each of several ranks on a small machine, so
# that the runs they are compared with must have one as well. Set before torch is loaded; other processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from damage import Refused, snapshot
from miniature import Project

from lightning_attr.cli import main, run_stage
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.console import out, warned


@pytest.fixture(autouse=True)
def spoken() -> None:
    """Let commands speak that another test's ``-q`` has silenced, and warn of what another one was warned of."""
    out.quiet = False
    warned.clear()


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Stores and configs, and nothing run yet."""
    root = tmp_path_factory.mktemp("project")
    sizes = ["--count", "40", "--val_count", "20", "--planted", "4", "--tokens", "6", "--dim", "16"]
    prepare_shapes(["--out", str(root / "train.lmdb"), "--val", str(root / "val.lmdb"), *sizes])
    return Project(root)


@pytest.fixture(scope="session")
def project(stores: Project) -> Project:
    """Everything, each stage run once without a stop."""
    for stage in ("train", "sample", "curvature", "unlearn", "similarity", "leave_k_out", "evaluate"):
        run_stage(stores.args(stage))
    return stores


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], project: Project) -> Refused:
    """Run a command that must be refused; return its one message. What others have made stays as it was."""

    def run(args: list[str]) -> str:
        before = snapshot(project.root)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(args)
        printed = capfd.readouterr().err
        assert ended.value.code == 1
        assert "Traceback" not in printed
        messages = [line for line in printed.splitlines() if not line.startswith("resuming from")]
        assert len(messages) == 1, printed
        assert messages[0].startswith("error: ")
        assert snapshot(project.root) == before
        return messages[0]

    return run
