"""A trial, and the copy of the project that it is tried in."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.trials.contents import ABOUT, Digests, contents
from tools.trials.process import Ended, Kill, command, forked
from tools.trials.project import PARTS
from tools.trials.verdict import Outcome, Verdict, verdict

#: Seconds that a command may take; the project's own take three at most where the machine is free.
LIMIT = 60.0


@dataclass(frozen=True)
class Trial:
    """One thing that is tried.

    Attributes:
        name: As ``settings/train/model.init_args.learning_rate/negative``.
        run: Tries it in a bench, with random numbers of its own.
    """

    name: str
    run: Callable[[Bench, Random], Outcome]


class Bench:
    """A copy of a whole project. What a trial changed in it is put back before the next one.

    Args:
        whole: The project.
        folder: Where the copy is made.
    """

    def __init__(self, whole: Path, folder: Path) -> None:
        self.whole = whole
        self.folder = folder
        self._whole: dict[str, tuple[int, int]] = {}
        self._state = self._whole

    def restore(self) -> None:
        """Put back what differs from the whole project, and remove what is new."""
        state, source = _snapshot(self.folder), _snapshot(self.whole)
        for name in state.keys() - source.keys():
            (self.folder / name).unlink(missing_ok=True)
        for name in source:
            if state.get(name, 0) != self._whole.get(name):
                target = self.folder / name
                if target.is_symlink():
                    target.unlink()  # or what it leads to would be written
                elif target.is_dir():
                    shutil.rmtree(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.whole / name, target)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()) and not (self.whole / path.relative_to(self.folder)).is_dir():
                path.rmdir()
        self._whole = self._state = _snapshot(self.folder)

    def changed(self) -> list[str]:
        """Return the files of the project that are not as they were, but for those that say how a run went."""
        state = _snapshot(self.folder)
        names = (name for name in self._state if Path(name).name not in ABOUT)
        return sorted(name for name in names if state.get(name) != self._state[name])

    def settle(self) -> None:
        """Take the files as they are now for what they were."""
        self._state = _snapshot(self.folder)

    def command(self, args: Sequence[str], limit: float = LIMIT, kill: Kill | None = None) -> Ended:
        """Run ``lightning-attr ARGS`` in it."""
        return command(args, self.folder, limit, kill)

    def contents(self, results: Sequence[str]) -> Digests:
        """Return the digests of some results, read in a process of its own: damage may end it."""
        return read_contents(self.folder, results)

    def untouched(self, what: str, makes: Sequence[str], run: Callable[[], Ended]) -> tuple[Digests, str, float]:
        """Return what a command makes, prints and takes where nothing is wrong; kept beside the whole project.

        Args:
            what: Which command, as ``undamaged/report``.
            makes: Its results.
            run: Runs it.
        """
        folder, _, name = what.partition("/")
        kept = self.whole / folder / f"{name}.json".replace("/", "-")
        if not kept.exists():
            ended = run()
            if ended.status != 0:
                raise RuntimeError(f"{what}: status {ended.status}\n{ended.err}")
            found = [self.contents(makes), ended.out, ended.seconds]
            self.restore()
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(found))
        digests, printed, seconds = json.loads(kept.read_text())
        return digests, printed, seconds


def read_contents(folder: Path, results: Sequence[str]) -> Digests:
    """Return :func:`~tools.trials.contents.contents`, read in a process of its own."""
    ended = forked(lambda: print(json.dumps(contents(folder, results))), folder, LIMIT)
    if ended.status != 0:
        return {"": f"status {ended.status}: {ended.last_line}"}
    found: Digests = json.loads(ended.out)
    return found


def outcome(
    name: str, args: Sequence[str], ended: Ended, right: bool, judged: Verdict | None = None, more: str = ""
) -> Outcome:
    """Return the outcome of a trial whose command has ended.

    Args:
        name: Of the trial.
        args: Of the command.
        ended: How it ended.
        right: Whether its result is one that it may have.
        judged: The verdict, where it is not for :func:`~tools.trials.verdict.verdict` to say.
        more: What else there is to say.
    """
    tail = "\n".join((ended.err.strip() or ended.out.strip()).splitlines()[-12:])
    said = "\n".join(part for part in (tail[-1500:], more) if part)
    return Outcome(name, judged or verdict(ended, right), shlex.join(args), said, round(ended.seconds, 2))


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for part in PARTS for path in (folder / part).rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)): _stamp(path) for path in files}


def _stamp(path: Path) -> tuple[int, int]:
    about = path.lstat()
    return about.st_mtime_ns, about.st_size
