"""Digests of what a run reads: files, and stores by the digest that they carry."""

from __future__ import annotations

from pathlib import Path

import xxhash

from datamodules.store import Store


def file_digest(path: str | Path) -> str:
    """Return the digest of a file; for a store the one that it carries, for a folder that of the files in it."""
    if Path(path).is_dir():
        files = sorted(file for file in Path(path).rglob("*") if file.is_file() and not file.name.startswith("."))
        names = [f"{file.relative_to(path)} {file_digest(file)}" for file in files]
        return xxhash.xxh3_128_hexdigest("\n".join(names).encode())
    if Path(path).suffix == ".lmdb":
        return Store(str(path)).digest
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
