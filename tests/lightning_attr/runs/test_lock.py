"""One run, one process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from damage import Refused
from miniature import Project

from lightning_attr.errors import UserError
from lightning_attr.runs.lock import LOCK, locked

HOLD = """
import pathlib, sys
from lightning_attr.runs.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that has the run's folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_command_at_the_same_run_is_refused(
    project: Project, tmp_path: Path, holder: subprocess.Popen[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_attr.cli.PATIENCE", 0.0)
    message = refused(project.args("train", tmp_path / "run"))
    where = f"{platform.node()}:{holder.pid}"
    assert message == f"error: {tmp_path / 'run'}: another process is running it, {where}"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    holder.communicate("")


def test_waits_for_one_that_is_about_to_end(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match="another process"), locked(tmp_path / "run"):
        pass
    holder.kill()  # the system lets go of the folder
    with locked(tmp_path / "run", patience=20):
        assert (tmp_path / "run" / LOCK).read_text() == f"{platform.node()}:{os.getpid()}\n"
    holder.communicate()


def test_who_has_a_folder_may_have_it_again(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path / "."):
            pass
        code = f"import pathlib; from lightning_attr.runs.lock import locked; locked(pathlib.Path({str(tmp_path)!r}))"
        other = subprocess.run([sys.executable, "-c", f"{code}.__enter__()"], capture_output=True, text=True)
        assert "another process is running it" in other.stderr


def test_a_forked_process_does_not_keep_a_folder(tmp_path: Path) -> None:
    """As workers that read ahead are, which end a moment after their parent."""
    with locked(tmp_path):
        if (child := os.fork()) == 0:
            time.sleep(20)
            os._exit(0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
