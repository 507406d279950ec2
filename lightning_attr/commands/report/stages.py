"""The stages of a run, and the stores that they used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.store import Store
from lightning_attr.errors import UserError
from lightning_attr.runs.folder import read_manifest
from lightning_attr.runs.identity import path_within


@dataclass(frozen=True)
class Stage:
    """A folder with a manifest.

    Args:
        name: Its path within the run.
        path: The folder.
        manifest: What ``manifest.json`` says.
    """

    name: str
    path: Path
    manifest: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Return whether it ran to its end."""
        return bool(self.manifest["status"] == "finished")

    @property
    def task(self) -> str:
        """Return the class of its LightningModule, such as ``Unlearning``."""
        return str(self.manifest["settings"].get("model.class_path", "")).rpartition(".")[2]

    @property
    def run(self) -> dict[str, Any]:
        """Return when, how far and with which seed it ran."""
        manifest = self.manifest
        limits = {key: value for key, value in manifest["limits"].items() if value is not None}
        times = {key: manifest[key] for key in ("started", "finished") if key in manifest}
        return {"status": manifest["status"], "verb": manifest["verb"], "seed": manifest.get("seed"), **limits, **times}

    @property
    def inputs(self) -> dict[str, str]:
        """Return the digests of what it read, by path."""
        settings, inputs = self.manifest["settings"], self.manifest["inputs"]
        digests = ((path_within(settings[key], name), files[name]) for key, files in inputs.items() for name in files)
        return {str(path): digest for path, digest in digests}

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of Python and the libraries."""
        return {"python": self.manifest["python"], **self.manifest["versions"]}


def find_stages(run: Path) -> list[Stage]:
    """Return the stages of a run in the order in which they were started.

    Raises:
        UserError: There is no such folder, no stage in it, or a manifest is not one.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder, expected that of a run")
    stages = [_read(run, path) for path in without_entries(run, run.rglob("manifest.json"))]
    if not stages:
        raise UserError(f"{run}: found no manifest.json in it or below, expected the folder of a run")
    return sorted(stages, key=lambda stage: (str(stage.manifest.get("started")), stage.name))


def find_sweeps(run: Path) -> list[str]:
    """Return the sweeps of a run, by their paths within it."""
    return sorted(str(path.parent.relative_to(run)) for path in run.rglob("sweep.json"))


def without_entries(run: Path, paths: Iterable[Path]) -> list[Path]:
    """Leave out what belongs to single entries of sweeps: an evaluation of their pack shows them all together."""
    entries = [run / sweep / "entries" for sweep in find_sweeps(run)]
    return [path for path in paths if not any(folder in path.parents for folder in entries)]


def _read(run: Path, path: Path) -> Stage:
    folder = path.parent
    name = str(folder.relative_to(run)) if folder != run else run.resolve().name
    return Stage(name, folder, read_manifest(path))


def find_stores(run: Path, stages: Sequence[Stage], role: str) -> dict[str, Store]:
    """Return the stores that stages were given as ``store`` or ``queries``, by digest.

    Raises:
        StoreError: One is damaged.
    """
    paths = {path.resolve(): path for path in _store_paths(run, stages, role)}
    stores = [Store(path) for path in paths.values()]
    return {store.digest: store for store in stores}


def _store_paths(run: Path, stages: Sequence[Stage], role: str) -> Iterator[Path]:
    for stage in stages:
        for key, value in stage.manifest["settings"].items():
            if key.rpartition(".")[2] == role and isinstance(value, str) and (path := _located(run, value)):
                yield path
        if role == "queries":  # the stage that makes them names them nowhere
            yield from stage.path.glob("queries.lmdb")


def _located(run: Path, recorded: str) -> Path | None:
    """Find a file that a manifest names; in a run that was moved, by the end of its path."""
    path = Path(recorded)
    tails = (run.joinpath(*path.parts[start:]) for start in range(1, len(path.parts)))
    return next((candidate for candidate in (path, *tails) if candidate.is_file()), None)
