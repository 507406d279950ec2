"""The folder of a run: its config, its manifest, and whether it is finished."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from glob import glob
from importlib.metadata import version
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml

from lightning_attr.artifacts import read_json, write_atomically, write_json
from lightning_attr.artifacts.before import renamed
from lightning_attr.artifacts.inputs import input_paths
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError

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
OWN_FILES = ("config.yaml", "manifest.json", "hparams.yaml")
LIMIT_KEYS = ("max_epochs", "max_steps")
LIBRARIES = ("lightning-attr", "torch", "lightning", "diffusers", "lmdb", "safetensors", "numpy")

Config = Mapping[str, Any]


class RunFolder:
    """``runs/NAME``: ``config.yaml``, ``manifest.json``, ``checkpoints/``, TensorBoard events, artefacts.

    Args:
        path: The folder; made when the run starts.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()  # as Lightning reads it
        self.last_checkpoint = self.path / "checkpoints" / "last.ckpt"
        self._manifest = self.path / "manifest.json"

    def start(self, verb: str, config: Config) -> bool:
        """Begin or continue a run; return False if it is finished already.

        Raises:
            UserError: The folder holds a run of another config or of other inputs; the message shows the difference.
        """
        config = renamed(config)
        inputs = {path: file_digest(path) for path in sorted(set(input_files(config)))}
        new = self._describe(verb, config, inputs)
        if self._manifest.exists():
            old = renamed(read_json(self._manifest))
            if self._has_results():
                self._check(old, new)
            if self.finished(config):
                return False
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())
        write_json(self._manifest, new)
        return True

    def finished(self, config: Config) -> bool:
        """Return whether the run is finished, up to the config's limits. Writes nothing, so any rank may ask."""
        if not self._manifest.exists():
            return False
        manifest = read_json(self._manifest)
        return bool(manifest["status"] == "finished" and manifest["limits"] == limits(config))

    def finish(self) -> None:
        """Mark the run as finished."""
        manifest = read_json(self._manifest)
        write_json(self._manifest, {**manifest, "status": "finished", "finished": _now()})

    def _has_results(self) -> bool:
        """Return whether there is anything to lose; a run that failed at its start may start with a better config."""
        files = (path.name for path in self.path.rglob("*") if path.is_file())
        return any(not name.startswith((*OWN_FILES, "events.out")) for name in files)

    def _describe(self, verb: str, config: Config, inputs: Mapping[str, str]) -> dict[str, Any]:
        return {
            "status": "running",
            "verb": verb,
            "settings": dict(flatten(result_settings(config))),
            "limits": limits(config),
            "inputs": dict(inputs),
            "seed": config.get("seed_everything"),
            "versions": {library: version(library) for library in LIBRARIES},
            "python": platform.python_version(),
            "started": _now(),
        }

    def _check(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        differences = [f"{what}: {was} -> {now}" for what, was, now in _differences(old, new)]
        if differences:
            raise UserError(
                f"{self.path}: holds a run of another config; choose another trainer.default_root_dir or delete the "
                f"folder. Changed: {'; '.join(differences)}"
            )


def limits(config: Config) -> dict[str, Any]:
    """Return how far a config lets a run go."""
    return {key: config["trainer"].get(key) for key in LIMIT_KEYS}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for part in ("settings", "inputs"):
        for key in sorted({*old[part], *new[part]}):
            nothing = "missing" if part == "inputs" else None
            was, now = old[part].get(key, nothing), new[part].get(key, nothing)
            if was != now:
                yield key, was, now
    if old["verb"] != new["verb"]:
        yield "verb", old["verb"], new["verb"]


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
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)  # type: ignore[assignment]
    else:
        yield prefix, value
        return
    for key, child in children:
        yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))


def input_files(config: Config) -> Iterator[str]:
    """Yield the files that a config's model and data read: those that the arguments of type ``InputPath`` name."""
    for section in ("model", "data"):
        for value in declared_inputs(config.get(section)):
            for path in sorted(glob(value)) if "*" in value else [value]:
                if Path(path).is_file():
                    yield path
                elif Path(path).is_dir():
                    yield from _files(Path(path))


def declared_inputs(value: Any) -> Iterator[str]:
    """Yield the values of the input arguments of all classes that a part of a config names."""
    if isinstance(value, list):
        for each in value:
            yield from declared_inputs(each)
    if isinstance(value, Mapping):
        if isinstance(owner := locate(str(value.get("class_path"))), type):
            yield from (path for _, path in input_paths(owner, value.get("init_args") or {}))
        for each in value.values():
            yield from declared_inputs(each)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a folder and its subfolders, as model folders have them."""
    for pattern in ("*", "*/*"):
        inside = sorted(folder.glob(pattern))
        yield from (str(file) for file in inside if file.is_file() and not _hidden(file.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
