"""Wrong command lines, and files that are whole but hold the wrong things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools.trials.trial import Trial


def trials(whole: Path) -> Iterator[Trial]:
    """Yield the trials of commands and files."""
    return iter(())
