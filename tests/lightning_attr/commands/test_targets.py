"""Where commands write: over nothing but what is of the same kind, and into no folder of something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_attr.artifacts import read_json
from lightning_attr.commands.targets import expect_like, expect_own
from lightning_attr.errors import UserError


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        expect_like("--json", path, "numbers", read_json)
    return str(refused.value)


def test_nothing_and_its_like_may_be_there(tmp_path: Path) -> None:
    expect_like("--json", None, "numbers", read_json)
    expect_like("--json", tmp_path / "none/numbers.json", "numbers", read_json)
    (tmp_path / "numbers.json").write_text("[1]")
    (tmp_path / "link.json").symlink_to("numbers.json")
    for name in ("numbers.json", "link.json"):
        expect_like("--json", tmp_path / name, "numbers", read_json)


@pytest.mark.timeout(20)
def test_all_else_is_kept(tmp_path: Path) -> None:
    """Also what nobody could read to its end, and links that lead nowhere."""
    (tmp_path / "text").write_text("no numbers")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("text", "folder", "pipe", "loop", "dangling"):
        expected = f"--json {tmp_path / name}: found something else there, expected nothing or numbers"
        assert refusal(tmp_path / name) == expected


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_own("--out", tmp_path / "none", "gallery.lmdb*")
    expect_own("--out", tmp_path, "gallery.lmdb*")
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match=f"--out: found {tmp_path} with other things in it"):
        expect_own("--out", tmp_path, "gallery.lmdb*")
    (tmp_path / "gallery.lmdb.partial").touch()  # as a kill leaves it
    expect_own("--out", tmp_path, "gallery.lmdb*")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--out: found the folder where you are"):
        expect_own("--out", Path(""), "gallery.lmdb*")
