"""The folder of a sweep: what it was started with, and how far each entry is."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from datamodules.grouping import is_file
from lightning_attr.artifacts import write_atomically
from lightning_attr.artifacts.before import renamed
from lightning_attr.artifacts.expect import expect_settings
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.commands.sweep.plan import (
    Entry,
    Settings,
    Sweep,
    entry_folder,
    store_path,
    training_config,
)
from lightning_attr.commands.sweep.score_files import matching
from lightning_attr.console import warn
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError, quoted
from lightning_attr.runs.identity import declared_paths, flatten, same
from lightning_attr.runs.lock import locked

#: Seconds to wait for an entry's lock: its last process may still be saving, or dying.
PATIENCE = 30.0

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Status:
    """How far an entry is.

    Args:
        state: ``running`` may also be an entry whose process was killed.
        error: Why it failed.
        seconds: How long the run that finished it took.
        where: Host and process that ran it last.
        since: When this state began, in seconds since 1970.
        log: Where its output went, if to a file.
    """

    state: State = "waiting"
    error: str = ""
    seconds: float = 0.0
    where: str = ""
    since: float = 0.0
    log: str = ""


def read_status(folder: Path) -> Status:
    """Return the status of the entry in a folder."""
    path = folder / "status.json"
    if not path.exists():
        return Status()
    found = read_record(path, {"state": str}, "status of an entry")
    for name, expected in get_type_hints(Status).items():
        if expected is float and not isinstance(found.get(name, 0.0), int | float):
            raise UserError(f"{path}: found {name} {quoted(found[name])}, expected seconds")
    return Status(**{field.name: found[field.name] for field in fields(Status) if field.name in found})


class SweepFolder:
    """A sweep on disk: ``sweep.json``, ``entries/NAME/``, and ``pack.*`` when it is finished.

    Args:
        sweep: Its config.
        entries: All that it retrains.
    """

    def __init__(self, sweep: Sweep, entries: Sequence[Entry]) -> None:
        self.path = Path(sweep.folder)
        self.sweep = sweep
        self.entries = entries

    def start(self) -> None:
        """Begin or continue the sweep. Entries may be added to one that exists.

        Raises:
            UserError: It was begun with another config or other files; the message shows the difference.
        """
        sweep, settings = self.sweep, self.settings()
        files = [sweep.original, sweep.queries, *self.scores()]
        if sweep.groups is not None and is_file(sweep.groups.grouping):
            files.append(sweep.groups.grouping)
        digests = {path: file_digest(path) for path in files}
        entries = {entry.name: _by_content(entry.settings, digests) for entry in self.entries}
        with locked(self.path, PATIENCE):  # the tasks of a job array all start at once
            self._extend(self.path / "sweep.json", {"settings": settings, "entries": entries})
            for entry in self.entries:
                path = self.entry(entry) / "entry.yaml"
                config = yaml.safe_dump(dict(entry.settings), sort_keys=False).encode()
                if not path.exists() or path.read_bytes() != config:
                    write_atomically(path, config)
                _settle(path.parent)

    def _extend(self, path: Path, new: dict[str, Any]) -> None:
        if path.exists():
            old = _read(path)
            if changed := list(_differences(old, new)):
                raise UserError(
                    f"{self.path}: holds a sweep of another config; choose another folder or delete this one. "
                    f"Changed: {'; '.join(changed)}"
                )
            new = {**new, "entries": {**old["entries"], **new["entries"]}}
        write_record(path, new)

    def settings(self) -> dict[str, Any]:
        """Return what all entries depend on."""
        sweep = self.sweep
        files = {"original": sweep.original, "queries": sweep.queries, "store": store_path(sweep)}
        for name, path in files.items():
            if not Path(path).exists():
                raise UserError(f"{name}: found no file {path}")
        return {
            "training": training_config(sweep.train),
            "shared": sweep.shared,
            "evaluation": dict(vars(sweep.evaluation)),
            "digests": {name: file_digest(path) for name, path in files.items()},
        }

    def scores(self) -> list[str]:
        """Return the scores files that say what is left out."""
        return [path for pattern in self.sweep.patterns for path in matching(pattern)]

    def entry(self, entry: Entry) -> Path:
        """Return the run folder of an entry."""
        return entry_folder(self.sweep, entry.name)

    def command(self, entry: Entry) -> list[str]:
        """Return the arguments of ``lightning-attr`` that run an entry."""
        configs = [*self.sweep.train, str(self.entry(entry) / "entry.yaml")]
        return ["fit", *(word for config in configs for word in ("-c", config))]

    def status(self, entry: Entry) -> Status:
        """Return the status of an entry."""
        return read_status(self.entry(entry))


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = renamed(read_record(path, {"settings": dict, "entries": dict}, "record of a sweep"))
    if "format" not in record:  # then entries named their files by paths
        digests, made_from = record.pop("scores"), record["settings"]["digests"]
        for name, settings in record["entries"].items():
            task = settings["model"]["init_args"]
            files = {task[role]: made_from[role] for role in ("original", "queries")}
            record["entries"][name] = _by_content(settings, {**digests, **files})
    expect_settings(f"{path}: entries", record["entries"], dict.fromkeys(record["entries"], dict))
    return record


def _by_content(settings: Settings, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return an entry's settings by their dotted keys, with digests in the place of paths."""
    flat = {key: value for key, value in flatten(settings) if key != "trainer.default_root_dir"}
    return {key: digests.get(value, value) if isinstance(value, str) else value for key, value in flat.items()}


def write_status(folder: Path, state: State, error: str = "", seconds: float = 0.0, log: str = "") -> None:
    """Write the status of an entry, whole or not at all."""
    where = f"{platform.node()}:{os.getpid()}"
    write_record(folder / "status.json", asdict(Status(state, error, round(seconds, 1), where, time.time(), log)))


def _settle(folder: Path) -> None:
    """Let an entry wait again whose process was killed, or whose status is damaged: its run knows how far it is."""
    try:
        state = read_status(folder).state
    except UserError as error:
        warn(f"{error}; the entry is run again")
        state = "running"
    if state == "running":
        with suppress(UserError), locked(folder):
            write_status(folder, "waiting")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore further signals to stop: a pool that breaks sends one to workers that are saving already."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def timed_status(folder: Path, log: str = "") -> Iterator[None]:
    """Write that an entry runs, and then what became of it. One that is stopped waits to go on."""
    start = time.perf_counter()
    try:  # what writes is in it as well: a signal may come there
        write_status(folder, "running", log=log)
        yield
        write_status(folder, "done", seconds=time.perf_counter() - start, log=log)
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_status(folder, "failed", message, log=log)
        raise
    except (KeyboardInterrupt, SystemExit):
        with _undisturbed():
            write_status(folder, "waiting", log=log)
        raise


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield what changed; entries that are only in one of the two do not count."""
    both = sorted(old["entries"].keys() & new["entries"].keys())
    was, now = (
        {"": _common(each["settings"]), **{f"entries.{name}.": each["entries"][name] for name in both}}
        for each in (old, new)
    )
    for part in was:
        for key in sorted(was[part].keys() | now[part].keys()):
            if not same(key, was[part].get(key), now[part].get(key)):
                yield f"{part}{key}: {was[part].get(key)} -> {now[part].get(key)}"


def _common(settings: Settings) -> dict[str, Any]:
    """Return what all entries depend on by dotted keys, without the paths of what is known by its digest."""
    paths = {key for key, _ in declared_paths(settings["training"], prefix="training.")}
    free = ("training.vars.", "training.trainer.default_root_dir")
    return {key: value for key, value in flatten(settings) if key not in paths and not key.startswith(free)}
