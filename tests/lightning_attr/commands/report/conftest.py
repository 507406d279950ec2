"""Runs to report on."""

import shutil
from pathlib import Path

import pytest
from report_runs import Builder

from lightning_attr.artifacts.scores import Scores


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """A builder of a run in an empty folder."""
    (tmp_path / "demo").mkdir()
    return Builder(tmp_path / "demo")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A run with all its parts, which tests only read."""
    builder = Builder(tmp_path_factory.mktemp("whole") / "demo")
    builder.root.mkdir()
    builder.everything()
    return builder


@pytest.fixture
def copied(whole: Builder, tmp_path: Path) -> Builder:
    """The same in another folder, which tests may change; its manifests still name the first one."""
    shutil.copytree(whole.root, tmp_path / "moved")
    return Builder(tmp_path / "moved")


@pytest.fixture
def many(builder: Builder) -> dict[str, Scores]:
    """A run of many methods and nothing else."""
    return builder.many_methods()
