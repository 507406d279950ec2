"""What results hold, as digests: of contents, so that times and the layout of a file do not count."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts import tensors_digest

#: Of JSON files: what differs from one run to the next.
PASSING = ("started", "finished", "since", "seconds", "where", "log", "versions", "python", "checksum", "tensors")

#: Files that say how a run went, and not what it found.
ABOUT = ("config.yaml", "manifest.json", "hparams.yaml", "status.json", "sweep.json", "entry.yaml", "log.txt", "lock")

Digests = dict[str, str]


def contents(folder: Path, results: Sequence[str]) -> Digests:
    """Return a digest of every file of some results, by path; of one that cannot be read, what is wrong with it."""
    return {str(path.relative_to(folder)): _digest(path) for name in results for path in _files(folder / name)}


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for inside in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in inside.relative_to(path).parts)
        if inside.is_file() and not hidden and inside.name not in ABOUT and not inside.name.startswith("events.out"):
            yield inside


def _digest(path: Path) -> str:
    read: dict[str, Callable[[Path], str]] = {
        ".safetensors": _tensors,
        ".lmdb": _store,
        ".ckpt": _checkpoint,
        ".json": _json,
        ".html": _page,
    }
    try:
        words = read.get(path.suffix, _bytes)(path)
    except Exception as error:  # whatever is wrong with a result, it is another one
        return f"{type(error).__name__}: {error}"[:200]
    return xxhash.xxh3_128_hexdigest(words.encode())


def _bytes(path: Path) -> str:
    return path.read_bytes().hex()


def _tensors(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        header = {key: value for key, value in (file.metadata() or {}).items() if key not in ("checksum", "format")}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    settings = _without_digests(json.loads(header.pop("settings", "{}")))
    return tensors_digest(tensors) + json.dumps([header, settings], sort_keys=True)


def _without_digests(settings: Any) -> Any:
    """Leave out what checkpoints and the like are called: those are compared themselves."""
    if not isinstance(settings, dict):
        return settings
    return {key: _without_digests(value) for key, value in settings.items() if key != "digests"}


def _store(path: Path) -> str:
    with Store(path) as store:
        arrays = {name: torch.from_numpy(store.read(name, range(len(store)))) for name in store.schema.fields}
        metas = [repr(store.meta(i)) + store.thumb(i).hex() for i in range(len(store))]
        return tensors_digest(arrays) + repr(store.schema) + repr(metas) + store.digest


def _checkpoint(path: Path) -> str:
    content = torch.load(path, map_location="cpu", weights_only=True)
    names = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    parts = dict(_flat({name: content.get(name) for name in names}, ""))
    tensors = {name: value for name, value in parts.items() if isinstance(value, Tensor)}
    return tensors_digest(tensors) + repr(sorted((name, parts[name]) for name in parts.keys() - tensors.keys()))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, child in pairs:
            yield from _flat(child, f"{name}/{key}")
    else:
        yield name, value


def _json(path: Path) -> str:
    return json.dumps(_lasting(json.loads(path.read_text())), sort_keys=True)


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in (*PASSING, "digests")}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def _page(path: Path) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?|\b[0-9a-f]{32}\b", "", path.read_text())
