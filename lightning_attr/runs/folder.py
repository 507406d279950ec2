"""The folder of a run: its config, its manifest, and whether it is finished."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml

from lightning_attr.artifacts import write_atomically
from lightning_attr.artifacts.before import renamed
from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.console import note
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError, quoted
from lightning_attr.runs.identity import Config, differences, flatten, inputs, name_within, outputs, result_settings
from lightning_attr.runs.lock import LOCK

OWN_FILES = ("config.yaml", "manifest.json", "hparams.yaml", LOCK)
LIMIT_KEYS = ("max_epochs", "max_steps")
LIBRARIES = ("lightning-attr", "torch", "lightning", "diffusers", "lmdb", "safetensors", "numpy")

#: What a manifest says, and of which type.
MANIFEST: Mapping[str, type] = {
    "status": str,
    "verb": str,
    "settings": dict,
    "limits": dict,
    "inputs": dict,
    "versions": dict,
    "python": str,
    "started": str,
}


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
                Or one that went further already, or a result of it is not what it was. Or files of no run.
        """
        config = renamed(config)
        new = _described(verb, config)
        if self._manifest.exists():
            old = read_manifest(self._manifest)
            if self._has_results():
                self._check(old, new, outputs(config))
            if self.finished(config):
                return False
            if self._has_results():
                new["resumed"] = True  # so that what is between start and finish is not how long it took
        else:
            self._check_free(config)
        write_record(self._manifest, new)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())
        return True

    def finished(self, config: Config) -> bool:
        """Return whether the run is finished, up to the config's limits, and what it made is there.

        Writes nothing, so any rank may ask.

        Raises:
            UserError: A result is not what the run made.
        """
        if not self._manifest.exists():
            return False
        manifest = read_manifest(self._manifest)
        if manifest["status"] != "finished" or manifest["limits"] != limits(config):
            return False
        results = {self.path / name: digest for name, digest in manifest.get("results", {}).items()}
        if missing := [path for path in results if not path.exists()]:
            note(f"{missing[0]}: missing; the run makes it again")
            return False
        for path, digest in results.items():
            if (found := file_digest(path)) != digest:
                raise UserError(
                    f"{path}: found digest {found}, expected {digest}, which the run made; delete it to make it again"
                )
        return True

    def finish(self, makes: Iterable[str] = ()) -> None:
        """Mark the run as finished.

        Args:
            makes: The names of the files that it may have made.
        """
        results = {name: file_digest(self.path / name) for name in makes if (self.path / name).exists()}
        manifest = read_manifest(self._manifest)
        write_record(self._manifest, {**manifest, "status": "finished", "finished": _now(), "results": results})

    def _check_free(self, config: Config) -> None:
        """Check that a folder without a manifest has nothing that the run would write over."""
        task = locate(str((config.get("model") or {}).get("class_path")))
        if found := [name for name in ("config.yaml", *getattr(task, "makes", ())) if (self.path / name).exists()]:
            raise UserError(
                f"{self.path}: found {found[0]} and no manifest.json of a run, expected a folder without, or a run's"
            )

    def _has_results(self) -> bool:
        """Return whether there is anything to lose; a run that failed at its start may start with a better config."""
        files = (path.name for path in self.path.rglob("*") if path.is_file())
        return any(not name.startswith((*OWN_FILES, "events.out", ".")) for name in files)

    def _check(self, old: Mapping[str, Any], new: Mapping[str, Any], ignored: set[str]) -> None:
        if changed := list(differences(old, new, ignored)):
            raise UserError(
                f"{self.path}: holds a run of another config; choose another trainer.default_root_dir or delete the "
                f"folder. Changed: {'; '.join(changed)}"
            )
        if new["limits"] != old["limits"] and self.last_checkpoint.exists():
            for key, done in _progress(self.last_checkpoint).items():
                if 0 <= (limit := -1 if new["limits"][key] is None else new["limits"][key]) < done:
                    raise UserError(
                        f"trainer.{key}: found {limit}, expected at least {done}: {self.path} is that far already"
                    )


def seconds_taken(folder: Path) -> float | None:
    """Return how long a run took, in whole seconds; None where it is not finished, or was stopped in between."""
    manifest = read_manifest(folder / "manifest.json")
    if manifest["status"] != "finished" or manifest.get("resumed"):
        return None
    return (datetime.fromisoformat(manifest["finished"]) - datetime.fromisoformat(manifest["started"])).total_seconds()


def run_seconds(result: str | Path) -> float | None:
    """Return how long the run took that made a file in its folder; None where the file is not as a run made it."""
    result = Path(result)
    path = result.parent / "manifest.json"
    if not path.is_file() or read_manifest(path).get("results", {}).get(result.name) != file_digest(result):
        return None
    return seconds_taken(result.parent)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a run's manifest says, with everything by its present name.

    Raises:
        UserError: It is missing, damaged, or no such manifest.
    """
    manifest: dict[str, Any] = renamed(read_record(path, MANIFEST, "manifest of a run"))
    if "format" in manifest:
        _check_inputs(path, manifest)
    else:  # then inputs were known by their paths
        manifest["inputs"] = _inputs_by_key(manifest["settings"], manifest["inputs"])
    return manifest


def _check_inputs(path: Path, manifest: Mapping[str, Any]) -> None:
    """Check that inputs are digests by the names of files, of arguments that name something."""
    for key, files in manifest["inputs"].items():
        if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
            raise UserError(f"{path}: inputs.{key}: found {quoted(files)}, expected digests by file")
        if not isinstance(named := manifest["settings"].get(key), str):
            raise UserError(f"{path}: settings.{key}: found {quoted(named)}, expected the path of an input")


def _inputs_by_key(settings: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, dict[str, str]]:
    named = {key: value for key, value in settings.items() if isinstance(value, str) and value}
    found = {
        key: {name: digest for path, digest in digests.items() if (name := name_within(value, path)) is not None}
        for key, value in named.items()
    }
    return {key: files for key, files in found.items() if files}


def _described(verb: str, config: Config) -> dict[str, Any]:
    return {
        "status": "running",
        "verb": verb,
        "settings": dict(flatten(result_settings(config))),
        "limits": limits(config),
        "inputs": inputs(config),
        "seed": config.get("seed_everything"),
        "versions": {library: version(library) for library in LIBRARIES},
        "python": platform.python_version(),
        "started": _now(),
    }


def limits(config: Config) -> dict[str, Any]:
    """Return how far a config lets a run go."""
    return {key: config["trainer"].get(key) for key in LIMIT_KEYS}


def _progress(checkpoint: Path) -> dict[str, int]:
    """Return how far the run of a checkpoint is: the epochs that it has begun, and its steps."""
    read = read_checkpoint(checkpoint)
    fit_loop = read.get("loops", {}).get("fit_loop", {})
    epochs = fit_loop.get("epoch_progress", {}).get("current", {}).get("ready", 0)
    return {"max_epochs": int(epochs), "max_steps": int(read.get("global_step", 0))}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
