"""Records: JSON files of ours, such as manifests, that notice when a bit of them changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from lightning_attr.artifacts.expect import expect_settings
from lightning_attr.artifacts.tensors import read_json, unknown_as_null, write_json
from lightning_attr.errors import UserError

FORMAT = "1"
"""Of records."""


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with a checksum, atomically."""
    # As it is read back: keys are strings, and there are no tuples.
    whole = json.loads(json.dumps(unknown_as_null({"format": FORMAT, **record})))
    write_json(path, {**whole, "checksum": _checksum(whole)})


def read_record(path: str | Path, expected: Mapping[str, type], what: str) -> dict[str, Any]:
    """Read what :func:`write_record` wrote; one that was written before there were checksums, unchecked.

    Args:
        path: The file.
        expected: The keys that it must have, and the types of their values.
        what: What it is, in words, such as "manifest of a run".

    Raises:
        UserError: It is missing, damaged, or no such record.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: found a {type(found).__name__}, expected the {what}")
    checksum = found.pop("checksum", None)
    if (checksum or "format" in found) and _checksum(found) != checksum:
        raise UserError(f"{path}: damaged, its checksum does not match its contents")
    expect_settings(f"{path}: {what}", found, expected)
    return found


def _checksum(record: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(record, sort_keys=True).encode())
