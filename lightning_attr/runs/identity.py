"""What the results of a run depend on: settings, and the contents of what it reads, wherever that lies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from glob import glob
from pathlib import Path
from pydoc import locate
from typing import Any

from lightning_attr.artifacts.inputs import InputPath, OutputPath, input_paths
from lightning_attr.digests import file_digest

#: The trainer's settings that change results. Others, such as how often it logs, may change before a resume.
TRAINER_KEYS = (
    "accumulate_grad_batches",
    "callbacks",
    "devices",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "num_nodes",
    "precision",
    "val_check_interval",
)

#: What configs wrote out where null is the default now, by the last part of the key: of a model without an adapter null
#: is just that, and with one there were no runs.
WRITTEN_OUT = {"weights": "cross_kv"}

#: What runs did before there was a setting for it, by the last part of the key.
UNSAID = {"gradient_checkpointing": False}

#: What may change before a resume, by the last part of the key: what else is measured in the end, not what is trained.
FREE = ("regenerate",)

Config = Mapping[str, Any]
Inputs = Mapping[str, Mapping[str, str]]
"""The digests of what each argument names, by the dotted key of the argument, and by the name of each file below it."""


def result_settings(config: Config) -> dict[str, Any]:
    """Return the part of a config that its results depend on."""
    trainer = {key: config["trainer"].get(key) for key in TRAINER_KEYS}
    data = {**(config.get("data") or {})}
    if data.get("init_args"):
        data["init_args"] = {key: value for key, value in data["init_args"].items() if key != "num_workers"}
    return {
        "seed_everything": config.get("seed_everything"),
        "model": config["model"],
        "data": data,
        "trainer": trainer,
    }


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and plain values of nested mappings and lists."""
    for key, child in children(value):
        yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
    if not isinstance(value, (Mapping, list)):
        yield prefix, value


def children(value: Any) -> Collection[tuple[Any, Any]]:
    """Return what a mapping or a list holds, by its keys or places; of a plain value, nothing."""
    if isinstance(value, Mapping):
        return value.items()
    return list(enumerate(value)) if isinstance(value, list) else ()


def declared_paths(value: Any, of: Any = InputPath, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys and values of all arguments of a type, of all classes that a part of a config names.

    Args:
        value: A part of a config.
        of: ``InputPath`` or ``OutputPath``.
        prefix: The key of the part, with a dot behind it.
    """
    if isinstance(value, Mapping) and isinstance(owner := locate(str(value.get("class_path"))), type):
        found = input_paths(owner, value.get("init_args") or {}, of)
        yield from ((f"{prefix}init_args.{name}", path) for name, path in found)
    for key, child in children(value):
        yield from declared_paths(child, of, f"{prefix}{key}.")


def inputs(config: Config) -> dict[str, dict[str, str]]:
    """Return the digests of all that a config's model, data and callbacks read; see :data:`Inputs`."""
    found = ((key, contents(path)) for key, path in declared_paths(result_settings(config)))
    return {key: digests for key, digests in found if digests}


def outputs(config: Config) -> set[str]:
    """Return the keys of the arguments that say where a config's model and callbacks write."""
    return {key for key, _ in declared_paths(result_settings(config), OutputPath)}


def contents(path: str) -> dict[str, str]:
    """Return the digests of the files that an argument names, by their names; nothing where there is none."""
    files = [file for each in (sorted(glob(path)) if "*" in path else [path]) for file in _files(Path(each))]
    return {name: file_digest(file) for file in files if (name := name_within(path, str(file))) is not None}


def name_within(named: str, file: str) -> str | None:
    """Return what a file is called within what an argument names, which does not depend on where that lies.

    Args:
        named: A file, a folder, or a pattern.
        file: A file.

    Returns:
        Nothing for the file itself; its path below the folder, or below the folders of a pattern that have no ``*``;
        None where it is not one of those.
    """
    if file == named:
        return ""
    root = _root(named)
    if root not in Path(file).parents or ("*" in named and not _matches(file, named)):
        return None
    return str(Path(file).relative_to(root))


def path_within(named: str, name: str) -> Path:
    """Return where a file lies that :func:`name_within` named."""
    return _root(named) / name if name else Path(named)


def _root(named: str) -> Path:
    """Return what an argument names, up to its first ``*``."""
    parts = Path(named).parts
    return Path(*parts[: next((place for place, part in enumerate(parts) if "*" in part), len(parts))])


def _matches(file: str, pattern: str) -> bool:
    return any(fnmatch(str(path), pattern) for path in (Path(file), *Path(file).parents))


def _files(path: Path) -> list[Path]:
    """Return a file; of a folder those in it and its subfolders, as models have them; of a run, what others read."""
    if path.is_file():
        return [path]
    if (path / "manifest.json").is_file():
        return sorted(path.glob("*.safetensors"))
    inside = sorted(file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file())
    return [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def same(key: str, was: Any, now: Any) -> bool:
    """Return whether a setting says what it did, or is free to change.

    It may say so by a default that was written out, or was not said at all.
    """
    name = key.rpartition(".")[2]
    if name in FREE:
        return True
    before = WRITTEN_OUT.get(name) if now is None else UNSAID.get(name) if was is None else None
    return bool(was == now) or (before is not None and before in (was, now))


def differences(old: Config, new: Config, ignored: Collection[str]) -> Iterator[str]:
    """Yield what differs between what two manifests say of ``settings``, ``inputs`` and ``verb``, in words.

    Args:
        old: Of the run that is there. Where it was written before inputs were known by their keys, those that it knows
            are compared.
        new: Of the run that is to start.
        ignored: Keys of settings that do not count.
    """
    keys = old["inputs"].keys() | (new["inputs"].keys() if "format" in old else set())
    for key in sorted(old["settings"].keys() | new["settings"].keys()):
        was, now = old["settings"].get(key), new["settings"].get(key)
        if not same(key, was, now) and key not in keys and key not in ignored:
            yield f"{key}: {was} -> {now}"
    for key in sorted(keys):
        was, now = old["inputs"].get(key, {}), new["inputs"].get(key, {})
        path = str(new["settings"].get(key, old["settings"].get(key)))
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                yield f"{key} {path_within(path, name)}: {was.get(name, 'missing')} -> {now.get(name, 'missing')}"
    if old["verb"] != new["verb"]:
        yield f"verb: {old['verb']} -> {new['verb']}"
