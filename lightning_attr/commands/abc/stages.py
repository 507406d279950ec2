"""Ordinary stages, one after the other, each in a run folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_attr.artifacts import write_atomically
from lightning_attr.cli import SAVED, FinishedError, run_stage
from lightning_attr.console import Stopped, note, out
from lightning_attr.errors import UserError


@dataclass(frozen=True)
class Stage:
    """A run of ``lightning-attr VERB``.

    Args:
        name: Of what it does, for who watches.
        verb: ``fit`` or ``predict``.
        configs: The files of its config.
        folder: Where it runs.
        own: What goes on top of the files; it is kept beside the folder.
        known: What the files may name as ``${vars.NAME}``; their own ``vars`` of other names stay.
    """

    name: str
    verb: str
    configs: Sequence[str]
    folder: Path
    own: Mapping[str, Any]
    known: Mapping[str, object] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """Return the words of its command."""
        files = [*self.configs, str(self._kept)]
        known = (word for name, value in self.known.items() for word in (f"--vars.{name}", str(value)))
        return [self.verb, *(word for file in files for word in ("-c", file)), *known]

    @property
    def _kept(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.yaml")

    def run(self) -> None:
        """Run it, or go on with it; nothing is done where it is finished.

        Raises:
            UserError: It is not what the folder holds, or it fails by the user's mistake.
            Stopped: A signal stopped it, after saving.
        """
        own = {"trainer": {"default_root_dir": str(self.folder)}, **self.own}
        text = yaml.safe_dump(own, sort_keys=False).encode()
        before = self._kept.read_bytes() if self._kept.exists() else None
        if text != before:
            write_atomically(self._kept, text)
        note(self.name)
        try:
            run_stage([*self.words, *(["-q"] if out.quiet else [])])
        except FinishedError:
            pass
        except SIGTERMException as stopped:
            raise Stopped(int(stopped.code or 143), SAVED) from None
        except UserError:
            if before not in (None, text):  # the folder is of those settings
                write_atomically(self._kept, before)
            raise
