"""Digests of what a run reads: files, and stores by the digest that they carry."""

from __future__ import annotations

from pathlib import Path

import xxhash

from datamodules.store import Store


def file_digest(path: str | Path) -> str:
    """Return the digest of a file; for a store the one that it carries."""
    if Path(path).suffix == ".lmdb":
        return Store(str(path)).digest
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
