"""Stores that no writer of ours makes: every checksum in them is right, whatever they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from small_stores import FIELDS, SCHEMA, sample

from datamodules.store.layout import (
    HEAD,
    META,
    THUMB,
    Blocks,
    encode_index,
    encode_json,
    encode_schema,
    encoder_key,
    key_of,
    seal,
)
from datamodules.store.pages import seal as seal_pages
from lightning_attr.encoders import PatchPCA

COUNT = 3
STATE = PatchPCA(4, 3).state()
IDS = np.arange(0, 3 * COUNT, 3)
CAPTIONS = 1 + IDS % 3

Values = dict[tuple[str, bytes], Any]
"""Values by database and key: what is no bytes becomes JSON; None is left out."""


def schema() -> dict[str, Any]:
    """The record of a good one."""
    record: dict[str, Any] = json.loads(encode_schema(SCHEMA))
    record["version"] = 2
    record["encoders"] = {
        "image": {"class": "PatchPCA", "patch": 4, "channels": 3},
        "text": {"class": "HashedWords", "tokens": 5, "dim": 8, "seed": 0},
    }
    for name, field in record["fields"].items():
        field["role"] = FIELDS[name].role
    return record


def meta(position: int) -> dict[str, Any]:
    return sample(int(IDS[position])).meta.to_json()


def hand_made(path: Path, changes: Values) -> Path:
    """Write a good store of three samples with some values changed."""
    values: Values = {
        (HEAD, b"schema"): schema(),
        (HEAD, b"complete"): {"count": COUNT, "digest": "xxh3-128:0"},
        state("image"): STATE,
        (HEAD, b"index"): encode_index(IDS, CAPTIONS.astype(np.int32)),
    }
    for position, id in enumerate(IDS):
        values[META, key_of(position)] = meta(position)
        values[THUMB, key_of(position)] = sample(int(id)).thumb
    values |= changes
    for name, field in FIELDS.items():
        arrays = np.stack([sample(int(id)).arrays[name] for id in IDS])
        values.setdefault((name, key_of(0)), Blocks.of(name, field).encode(0, arrays))
    with lmdb.open(f"{path}.raw", subdir=False, map_size=1 << 26, max_dbs=20, lock=False, sync=False) as env:
        for (name, key), value in values.items():
            if value is None:
                continue
            payload = value if isinstance(value, bytes) else encode_json(value)
            database = env.open_db(name.encode())
            with env.begin(write=True) as transaction:
                stored = payload if name in FIELDS else seal(name, key, payload)
                transaction.put(key, stored, db=database)
        env.copy(str(path), compact=True)
    seal_pages(str(path))
    return path


def state(name: str) -> tuple[str, bytes]:
    """Where an encoder's state lies."""
    return HEAD, encoder_key(name)
