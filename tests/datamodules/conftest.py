"""Stores that tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_stores import write_store


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 150 samples; never to be changed."""
    return write_store(tmp_path_factory.mktemp("store") / "train.lmdb", 150)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[int], Path]:
    return lambda count: write_store(tmp_path / f"{count}.lmdb", count)
