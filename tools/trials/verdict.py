"""What became of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tools.trials.process import Ended

#: Characters of a message that nobody reads to its end.
LONG = 1000

Verdict = Literal["clear", "harmless", "traceback", "silent", "signal", "slow", "long", "wordless"]

#: What each verdict means.
VERDICTS: Mapping[Verdict, str] = {
    "clear": "refused with one line that begins with error:, and status 1",
    "harmless": "the right result, or one as good: the setting has a meaning, the damage is noticed and mended",
    "traceback": "a traceback",
    "silent": "status 0, and a wrong result or a setting without meaning",
    "signal": "killed by SIGSEGV, SIGBUS or the like",
    "slow": "over the limit of time",
    "long": f"clear, but of more than {LONG:,} characters",
    "wordless": "another end: a status without a message of ours, or several",
}

#: Those that are no faults.
RIGHT = ("clear", "harmless")


@dataclass(frozen=True)
class Outcome:
    """What became of a trial, and what shows it.

    Attributes:
        name: Of the trial; it reproduces it.
        verdict: What became of it.
        command: Its command.
        said: The end of what it said.
        seconds: How long it took.
    """

    name: str
    verdict: Verdict
    command: str
    said: str
    seconds: float

    @property
    def group(self) -> str:
        """Return the kind of the trial, such as ``settings/train``."""
        return "/".join(self.name.split("/")[:2])

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def verdict(ended: Ended, right: bool) -> Verdict:
    """Judge how a command ended.

    Args:
        ended: How it ended.
        right: Whether its result, where it ends well, is one that it may have.
    """
    said = ended.err + ended.out
    if ended.status is None:
        return "slow"
    if ended.status < 0:
        return "signal"
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if ended.status == 0:
        return "harmless" if right else "silent"
    messages = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.status != 1 or len(messages) != 1:
        return "wordless"
    return "long" if len(ended.err) > LONG else "clear"
