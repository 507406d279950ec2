import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.store import Store
from lightning_attr.commands.prepare.shapes import main as prepare_shapes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.lmdb"
    prepare_shapes(["--out", str(path), "--count", "40", "--planted", "2"])
    return path


def inspect(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """As a user does; in a subprocess also because a damaged page could end a process."""
    return subprocess.run(
        [sys.executable, "-m", "lightning_attr.main", "inspect", *arguments],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )


def test_says_what_a_store_holds(store: Path) -> None:
    done = inspect(str(store), "--verify", "--captions", "2")
    assert (done.returncode, done.stderr) == (0, "")
    with Store(store) as opened:
        assert opened.digest in done.stdout
        caption = opened.meta(0).captions[2]
    words = " ".join(done.stdout.split())
    for expected in ("PatchPCA", "HashedWords", "3 in 40", "1 x 4 x 8 x 8", "3 x 16 x 64", "float16", caption):
        assert expected in words
    assert "every checksum of 40 samples is right" in words


def test_damage_is_found(store: Path) -> None:
    """A flipped bit in every page of the second half of the file: some of it must lie in a value."""
    content = bytearray(store.read_bytes())
    for offset in range(len(content) // 2 + 2000, len(content), 4096):
        content[offset] ^= 1
    store.write_bytes(content)
    done = inspect(str(store), "--verify")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert str(store) in done.stderr


def test_no_store_there(tmp_path: Path) -> None:
    done = inspect(str(tmp_path / "none.lmdb"))
    assert done.returncode == 1
    assert "none.lmdb" in done.stderr
    assert "Traceback" not in done.stderr
