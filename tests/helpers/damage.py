"""Damaged copies of files, and what a message must say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Refused = Callable[[list[str]], str]
"""Runs a command that must be refused, and returns its one message."""


def snapshot(folder: Path) -> dict[str, int]:
    """When each file was written last, but for those that say which process has a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path): path.stat().st_mtime_ns for path in files}


def flipped(path: Path, target: Path, at: float) -> Path:
    """Copy a file with one bit flipped at a place from 0 to 1."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 16
    target.write_bytes(data)
    return target


def truncated(path: Path, target: Path) -> Path:
    """Copy the first half of a file."""
    data = path.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    return target


def changed(path: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy a checkpoint with other contents, and without digests, as others may write one."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint.pop("digests", None)
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def assert_says(message: str, *words: object) -> None:
    for word in words:
        assert str(word) in message, message
