"""Kills at random moments of every stage; then the same command again, until it is done."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from tools.trials.process import Ended, Kill
from tools.trials.project import Stage, stages
from tools.trials.trial import Bench, Trial, outcome
from tools.trials.verdict import Outcome

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

#: How often one run is killed, at most.
KILLS = 3

#: Seconds that a stage may take, processes that it starts included: each of those imports everything anew.
LIMIT = 300.0

#: The statuses of a command that a signal ended in order.
STOPPED = {signal.SIGTERM: 143, signal.SIGINT: 130}

#: The stages that make something, each of a kind of its own.
STAGES = (
    "prepare_shapes", "prepare_coco", "train", "sample", "curvature", "curvature_ekfac", "unlearn/0", "mirrored/0",
    "attribute/trak", "attribute/default", "attribute/unlearning", "leave_k_out", "evaluate", "evaluate_run", "unpack",
    "report", "abc_make", "abc_scores", "abc_read", "shares_fit", "groups",
)  # fmt: skip

#: Trials of each stage.
EACH = 20


def _tried() -> Iterator[Stage]:
    every = stages()
    yield from (every[name] for name in STAGES)
    sweep = every["sweep"]
    yield Stage("sweep", sweep.args, ("runs/sweep",), "sweep")
    yield Stage("grouped sweep", (*sweep.args, "--group", "4"), ("runs/sweep",), "sweep")


def trials(whole: Path) -> Iterator[Trial]:
    """Yield trials of all stages."""
    for stage in _tried():
        for number in range(EACH if "sweep" not in stage.name else EACH // 2):
            name = f"kills/{stage.name}/{number}"
            yield Trial(name, partial(_try, name, stage))


def _try(name: str, stage: Stage, bench: Bench, random: Random) -> Outcome:
    expected, seconds = _undisturbed(bench, stage)
    _remove(bench, stage)
    moments = []
    for _ in range(random.randint(1, KILLS)):
        kill = Kill(random.choice(SIGNALS), random.uniform(0, 1.1 * seconds))
        ended = bench.command(stage.args, LIMIT, kill)
        moments.append(f"{kill.signal.name} at {kill.after:.2f} s of {seconds:.2f}: status {ended.status}")
        allowed = {0, -kill.signal} if kill.signal == signal.SIGKILL else {0, STOPPED[kill.signal]}
        if ended.status not in allowed or "Traceback" in ended.err:
            judged = "traceback" if "Traceback" in ended.err else "wordless"
            return outcome(name, stage.args, ended, False, judged, "; ".join(moments))  # type: ignore[arg-type]
        if ended.status == 0:
            break
    ended = bench.command(stage.args, LIMIT)
    found = bench.contents(stage.makes)
    wrong = [path for path in {**expected, **found} if found.get(path) != expected.get(path)]
    more = "; ".join(moments) + (f"; another result: {wrong[:3]}" if wrong else "")
    judged_end = None if ended.status == 0 else "wordless"
    return outcome(name, stage.args, ended, not wrong, judged_end, more)  # type: ignore[arg-type]


def _remove(bench: Bench, stage: Stage) -> None:
    for made in stage.makes:
        path = bench.folder / made
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def _undisturbed(bench: Bench, stage: Stage) -> tuple[dict[str, str], float]:
    """Return what a stage makes that nobody kills, and how long it takes."""

    def run() -> Ended:
        _remove(bench, stage)
        return bench.command(stage.args, LIMIT)

    makes, _, seconds = bench.untouched(f"undisturbed/{stage.name}", stage.makes, run)
    return makes, seconds
