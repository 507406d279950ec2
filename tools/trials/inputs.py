"""Files that are whole but hold the wrong things: one part of each missing, of another type or shape, one at a time."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from torch import Tensor

from lightning_attr.artifacts import load_artifact, save_tensors
from lightning_attr.artifacts.records import write_record
from lightning_attr.digests import file_digest
from tools.trials import known, own
from tools.trials.flips import readers
from tools.trials.images import BROKEN, IMAGES, put
from tools.trials.process import forked
from tools.trials.project import PACK
from tools.trials.stores import STORES, remake
from tools.trials.trial import LIMIT, Bench, Trial, outcome
from tools.trials.verdict import Outcome

Make = Callable[[], None]
"""Changes a file, in a process of its own in the folder of the project."""

#: Files of tensors, and what reads each.
ARTEFACTS = {
    "runs/curvature/curvature.safetensors": ("attribute/influence_diagonal", "unlearn/0"),
    "runs/curvature_kfac/curvature.safetensors": ("attribute/kfac",),
    "runs/curvature_ekfac/curvature.safetensors": ("attribute/influence_ekfac_per_draw",),
    "runs/base_losses.safetensors": ("unlearn/0",),
    "runs/attribute/trak/scores.safetensors": ("leave_k_out", "evaluate pack", "evaluate", "report"),
    "runs/attribute/top/scores.safetensors": ("report", "evaluate pack"),
    "runs/unlearn/0/weights.safetensors": ("attribute/unlearning",),
    "runs/mirrored/0/weights.safetensors": ("attribute/mucs",),
    "runs/leave_k_out/retraining.safetensors": ("evaluate", "report"),
    "runs/sweep/entries/full/seed-1/retraining.safetensors": ("pack",),
    PACK[1]: ("evaluate pack", "unpack"),
    **known.ARTEFACTS,
}

#: Files of settings, and what reads each.
SETTINGS = {
    "coco/captions.json": ("prepare_coco anew",),
    "runs/train/manifest.json": ("report", "train again", "train on"),
    "runs/attribute/trak/manifest.json": ("report",),
    "runs/evaluate/metrics.json": ("report",),
    "runs/packed/metrics.json": ("report",),
    "runs/sweep/sweep.json": ("pack", "list", "report"),
    "runs/sweep/entries/full/seed-1/status.json": ("pack", "list"),
    "runs/sweep/entries/full/seed-1/entry.yaml": ("pack", "list"),
    "runs/sweep/entries/full/seed-1/config.yaml": ("pack",),
    "others/factors_ekfac/curvature.json": ("attribute/factors",),
    "others/factors_ekfac/factor_arguments.json": ("attribute/factors",),
    "others/unet/config.json": ("others",),
    "others/scheduler/scheduler_config.json": ("others",),
    "others/vision/config.json": ("attribute/vision",),
    "others/text/config.json": ("encoders",),
    "others/vae/config.json": ("encoders",),
    PACK[0]: ("evaluate pack", "unpack"),
    **own.SETTINGS,
    **known.SETTINGS,
}

#: What takes the place of a part.
WRONG: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("word", "banana"),
    ("list", []),
    ("mapping", {}),
    ("negative", -1),
    ("nan", math.nan),
)

CHECKPOINTS = {
    "runs/train/checkpoints/last.ckpt": ("attribute/trak", "sample", "validate", "train on"),
    "runs/unpacked/original.ckpt": ("original",),
}


def trials(whole: Path) -> Iterator[Trial]:
    """Yield the trials of all files.

    Args:
        whole: The project.
    """
    for path, read_by in ARTEFACTS.items():
        for name, make in _artefacts(whole / path, path):
            yield _trial(f"inputs/{path}/{name}", make, read_by, "nan" not in name or "losses" in path)
    for path, read_by in SETTINGS.items():
        for name, make in _settings(whole / path, path):
            yield _trial(f"inputs/{path}/{name}", make, read_by, True)
    for path, read_by in CHECKPOINTS.items():
        for name, make in _checkpoints(whole / path, path):
            yield _trial(f"inputs/{path}/{name}", make, read_by, "nan" not in name)
    for path, read_by in own.TENSORS.items():
        for name, make in own.tensors(whole / path, path, TENSORS):
            yield _trial(f"inputs/{path}/{name}", make, read_by, True)
        for name, foreign in FOREIGN.items():
            yield _trial(f"inputs/{path}/in its place {name}", partial(_write, path, foreign), read_by, False)
    for name, make, read_by, may in (*own.inputs(), *known.inputs()):
        yield _trial(f"inputs/{name}", make, read_by, may)
    for name, change in STORES.items():
        for reader in ("attribute/trak", "train", "inspect"):
            yield _trial(f"inputs/store/{name}, {reader}", partial(remake, change), (reader,), True)
    for name, draw in IMAGES.items():
        yield _trial(f"inputs/image/{name}", partial(put, draw), ("prepare_coco anew",), name not in BROKEN)


def _trial(name: str, make: Make, read_by: tuple[str, ...], may: bool) -> Trial:
    return Trial(name, partial(_try, name, make, read_by, may))


def _try(name: str, make: Make, read_by: tuple[str, ...], may: bool, bench: Bench, random: Random) -> Outcome:
    reader_name = random.choice(read_by)
    reader = readers()[reader_name]
    made = forked(make, bench.folder, LIMIT)
    if made.status != 0 and "StoreError" in made.err:  # its writer has refused it
        return outcome(name, reader.args, made, may, "clear")
    if made.status != 0:
        raise RuntimeError(f"{name}: {made.err}")
    for path in reader.removed:
        (bench.folder / path).unlink(missing_ok=True)
    return outcome(name, reader.args, bench.command(reader.args, LIMIT), may, more=f"read by {reader_name}")


def _artefacts(source: Path, path: str) -> Iterator[tuple[str, Make]]:
    tensors, header = load_artifact(source)
    kept = dict(list(tensors.items())[:8])  # of many layers some
    for name in kept:
        for how in TENSORS:
            yield f"{name} {how}", partial(_rewrite, path, _tensor_changed, name, how)
    for key in header.settings:
        yield f"settings without {key}", partial(_rewrite, path, _setting_changed, key, None, True)
        for how, wrong in WRONG:
            yield f"settings {key} {how}", partial(_rewrite, path, _setting_changed, key, wrong, False)
    for kind in ("scores", "curvature", "losses", "chunk", ""):
        if kind != header.kind:
            yield f"kind {kind}", partial(_rewrite, path, _kind_changed, kind)


#: What becomes of a tensor.
TENSORS: Mapping[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda tensor: None,
    "nan": lambda tensor: torch.full_like(tensor.float(), math.nan),
    "inf": lambda tensor: torch.full_like(tensor.float(), math.inf),
    "empty": lambda tensor: tensor[:0] if tensor.ndim else tensor.reshape(1)[:0],
    "shorter": lambda tensor: tensor[:-1] if tensor.ndim else tensor.reshape(1),
    "scalar": lambda tensor: torch.zeros((), dtype=tensor.dtype),
    "deeper": lambda tensor: tensor[None],
    "flat": lambda tensor: tensor.flatten(),
    "int": lambda tensor: tensor.nan_to_num().long(),
    "bool": lambda tensor: tensor.bool(),
    "zero": lambda tensor: torch.zeros_like(tensor),
    "half": lambda tensor: tensor.half(),
    "reversed": lambda tensor: tensor.flip(0) if tensor.ndim else tensor,
}


def _rewrite(path: str, change: Callable[..., Any], *arguments: Any) -> None:
    """Change an artefact, and save it with a checksum that is right."""
    tensors, header = load_artifact(path)
    content: dict[str, Any] = {"kind": header.kind, "tensors": dict(tensors), "settings": dict(header.settings)}
    change(content, *arguments)
    save_tensors(path, content["kind"], content["tensors"], content["settings"], **header.words)
    if path == PACK[1]:
        _seal_pack()


def _tensor_changed(content: Any, name: str, how: str) -> None:
    changed = TENSORS[how](content["tensors"].pop(name))
    if changed is not None:
        content["tensors"][name] = changed


def _setting_changed(content: Any, key: str, wrong: Any, missing: bool) -> None:
    content["settings"][key] = wrong
    if missing:
        del content["settings"][key]


def _kind_changed(content: Any, kind: str) -> None:
    content["kind"] = kind


def _seal_pack() -> None:
    """Give a pack's manifest the digest of the tensors that are there."""
    manifest = json.loads(Path(PACK[0]).read_text())
    _write_settings(Path(PACK[0]), {**manifest, "tensors": file_digest(PACK[1])})


def _write_settings(path: Path, content: Any) -> None:
    """Write a file of settings; one that had a checksum gets the right one."""
    if isinstance(content, dict) and "checksum" in content:
        write_record(path, {key: value for key, value in content.items() if key != "checksum"})
    else:
        path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))


def _settings(source: Path, path: str) -> Iterator[tuple[str, Make]]:
    content = _parsed(source)
    for key in _keys(content):
        label = ".".join(map(str, key))
        yield f"{label} missing", partial(_change_settings, path, key, None, True)
        for how, wrong in WRONG:
            yield f"{label} {how}", partial(_change_settings, path, key, wrong, False)


def _parsed(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def _keys(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the parts of nested mappings and lists are; of lists the first."""
    yield above
    if len(above) < 4 and isinstance(content, dict):
        for key, value in content.items():
            yield from _keys(value, (*above, key))
    elif len(above) < 4 and isinstance(content, list) and content:
        yield from _keys(content[0], (*above, 0))


def _change_settings(path: str, key: tuple[Any, ...], wrong: Any, missing: bool) -> None:
    _write_settings(Path(path), _put(_parsed(Path(path)), key, wrong, missing))


def _put(content: Any, key: tuple[Any, ...], wrong: Any, missing: bool) -> Any:
    """Return content with another value at a place, or without it."""
    if not key:
        return wrong
    if len(key) == 1 and missing:
        del content[key[0]]
    else:
        content[key[0]] = _put(content[key[0]], key[1:], wrong, missing)
    return content


def _checkpoints(source: Path, path: str) -> Iterator[tuple[str, Make]]:
    content = torch.load(source, weights_only=True)
    keys = [key for key in _keys(content) if key]
    weights = [key for key in keys if key[0] == "state_dict" and len(key) == 2]
    for key in [key for key in keys if key not in weights]:
        label = "/".join(map(str, key))
        yield f"{label} missing", partial(_change_checkpoint, path, key, None, True)
        for how, wrong in WRONG:
            yield f"{label} {how}", partial(_change_checkpoint, path, key, wrong, False)
    for key in weights[:3]:
        for how in TENSORS:
            yield f"{'/'.join(key)} {how}", partial(_change_weight, path, key, how)
    for how, wrong in WRONG:
        yield f"{how} in all", partial(_change_checkpoint, path, (), wrong, False)
    for name, make in FOREIGN.items():
        yield f"in its place {name}", partial(_write, path, make)


def _change_checkpoint(path: str, key: tuple[Any, ...], wrong: Any, missing: bool) -> None:
    torch.save(_put(torch.load(path, weights_only=True), key, wrong, missing), path)


def _change_weight(path: str, key: tuple[Any, ...], how: str) -> None:
    content = torch.load(path, weights_only=True)
    weight = TENSORS[how](content[key[0]].pop(key[1]))
    if weight is not None:
        content[key[0]][key[1]] = weight
    torch.save(content, path)


def _write(path: str, make: Callable[[], bytes]) -> None:
    Path(path).write_bytes(make())


class _Ours:
    """What no reader knows."""


def _saved(value: Any, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def _zip(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


#: Files that are no checkpoint.
FOREIGN: Mapping[str, Callable[[], bytes]] = {
    "a tensor": lambda: _saved(torch.zeros(3)),
    "a list of tensors": lambda: _saved([torch.zeros(3)]),
    "an object": lambda: _saved({"state_dict": {}, "x": _Ours()}),
    "a pickle": lambda: b"(dp0\nVstate_dict\np1\n(dp2\ns.",  # {"state_dict": {}}
    "an old format": lambda: _saved({"state_dict": {}}, _use_new_zipfile_serialization=False),
    "weights alone": lambda: _saved({"conv_in.weight": torch.zeros(8, 4, 3, 3)}),
    "no archive": lambda: b"PK\3\4" + bytes(100),
    "an empty archive": lambda: _zip(),
    "an archive of others": lambda: _zip(a=b"b"),
    "text": lambda: b"<html>404</html>",
    "a pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "nothing": lambda: b"",
}
