"""Runs that several tests of the package look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from miniature import Project

from lightning_attr.cli import run_stage


@pytest.fixture(scope="session")
def ekfac(project: Project) -> Path:
    """A run of EK-FAC without a stop: two epochs of five batches each."""
    run_stage(project.args("curvature", project.root / "ekfac", model__init_args__kind="ekfac"))
    return project.root / "ekfac"
