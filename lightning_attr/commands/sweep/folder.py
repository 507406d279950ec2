"""The folder of a sweep: what it was started with, and how far each entry is."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import yaml

from lightning_attr.artifacts import read_json, write_atomically, write_json
from lightning_attr.artifacts.before import renamed
from lightning_attr.commands.sweep.plan import Entry, Sweep, entry_folder, matching, store_path, training_config
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.runs.folder import flatten

#: Parts of ``sweep.json`` that may grow.
EXTENSIBLE = ("scores", "entries")

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
    return Status(**read_json(path)) if path.exists() else Status()


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
        new: dict[str, Any] = {
            "settings": self.settings(),
            "scores": {path: file_digest(path) for path in self.scores()},
            "entries": {entry.name: dict(entry.settings) for entry in self.entries},
        }
        with locked(self.path, PATIENCE):  # the tasks of a job array all start at once
            self._extend(self.path / "sweep.json", new)
            for entry in self.entries:
                path, config = self.entry(entry) / "entry.yaml", yaml.safe_dump(dict(entry.settings), sort_keys=False)
                if not path.exists() or path.read_text() != config:
                    write_atomically(path, config.encode())
                _settle(path.parent)

    def _extend(self, path: Path, new: dict[str, Any]) -> None:
        if path.exists():
            old = renamed(read_json(path))
            if changed := list(_differences(old, new)):
                raise UserError(
                    f"{self.path}: holds a sweep of another config; choose another folder or delete this one. "
                    f"Changed: {'; '.join(changed)}"
                )
            new = {**new, **{part: {**old[part], **new[part]} for part in EXTENSIBLE}}
            if new == old:
                return
        write_json(path, new)

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
        patterns = self.sweep.top.scores.values() if self.sweep.top is not None else ()
        return [path for pattern in patterns for path in matching(pattern)]

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


def write_status(folder: Path, state: State, error: str = "", seconds: float = 0.0, log: str = "") -> None:
    """Write the status of an entry, whole or not at all."""
    where = f"{platform.node()}:{os.getpid()}"
    write_json(folder / "status.json", asdict(Status(state, error, round(seconds, 1), where, time.time(), log)))


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder; the system lets go of it when the process ends, however that happens.

    Args:
        folder: Of an entry, or of the sweep.
        patience: How many seconds to wait for another process that holds it.

    Raises:
        UserError: Another process still holds it, or the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / "lock").open("a") as file:
        while not _taken(file, folder):
            if time.monotonic() >= deadline:
                raise UserError(f"{folder}: another process is running it, {read_status(folder).where or 'just begun'}")
            time.sleep(min(0.2, patience))
        yield


def _taken(file: TextIO, folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"{folder}: found a file system without locks ({error}), expected one with flock") from error
    return True


def _settle(folder: Path) -> None:
    """Let an entry wait again whose process was killed."""
    if read_status(folder).state == "running":
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
    write_status(folder, "running", log=log)
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_status(folder, "failed", message, log=log)
        raise
    except (KeyboardInterrupt, SystemExit):
        with _undisturbed():
            write_status(folder, "waiting", log=log)
        raise
    write_status(folder, "done", seconds=time.perf_counter() - start, log=log)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield what changed; scores and entries that are only in one of the two do not count."""
    both = {part: old[part].keys() & new[part].keys() for part in EXTENSIBLE}
    was, now = (
        dict(flatten({**each["settings"], **{part: {name: each[part][name] for name in both[part]} for part in both}}))
        for each in (old, new)
    )
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            yield f"{key}: {was.get(key)} -> {now.get(key)}"
