"""Try wrong settings, damaged files and kills, and count what becomes of them.

    python -m tools.trials [--only KIND ...] [--limit N] [--json FILE] [--trial NAME]

Aim: no traceback, nothing silent, no process that dies of a signal. A trial that went wrong is printed with its name,
by which --trial runs it alone. With --json the outcomes are kept as they come: the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from rich.table import Table
from rich.text import Text

from lightning_attr.console import err, out, print_table
from tools.trials import flips, inputs, kills, mixups, settings, words
from tools.trials.process import CONTEXT, preload
from tools.trials.project import make
from tools.trials.trial import Bench, Trial
from tools.trials.verdict import RIGHT, VERDICTS, Outcome

#: The trials of each kind, and how many are run where nothing else is asked for.
KINDS: Mapping[str, tuple[Callable[[Path], Iterable[Trial]], int]] = {
    "settings": (settings.trials, 1000),
    "words": (words.trials, 500),
    "inputs": (inputs.trials, 500),
    "mixups": (mixups.trials, 0),
    "flips": (flips.trials, 1000),
    "kills": (kills.trials, 60),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; the status is 1 where a trial went wrong."""
    args = _parser().parse_args(arguments)
    preload()
    with TemporaryDirectory(prefix="trials-") as temporary:
        whole = (args.project or Path(temporary) / "whole").resolve()
        if not (whole / "made").exists():
            err.print(f"making a whole project in {whole}")
            make(whole)
            (whole / "made").touch()
        names = KINDS if args.only is None else args.only
        chosen = [trial for name in names for trial in _chosen(name, whole, args)]
        log = args.json or Path(temporary) / "outcomes.jsonl"
        known = {each.name for each in read(log)}
        waiting = [trial for trial in chosen if trial.name not in known]
        err.print(f"{len(chosen)} trials, {len(chosen) - len(waiting)} of them done already")
        _run_all(waiting, whole, Path(temporary), log, args)
        wanted = {trial.name for trial in chosen}
        outcomes = [each for each in read(log) if each.name in wanted]
    print_table(table(outcomes))
    sys.exit(any(each.verdict not in RIGHT for each in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.trials", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, help="only trials of these kinds")
    parser.add_argument("--limit", type=int, help="so many of each kind, at most; 0 is all that there are")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another choice, and other damage")
    parser.add_argument("--trial", action="append", metavar="NAME", help="this one; it may end in *")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the outcomes in this file, one a line")
    parser.add_argument("--project", type=Path, metavar="DIR", help="keep the whole project here, for the next time")
    parser.add_argument("--jobs", type=int, default=1, help="so many trials at once")
    return parser


def _chosen(name: str, whole: Path, args: argparse.Namespace) -> list[Trial]:
    """Return the trials of a kind that are asked for: of each of its groups a share."""
    source, usual = KINDS[name]
    every = list(source(whole))
    if args.trial is not None:
        return [trial for trial in every if any(_matches(trial.name, pattern) for pattern in args.trial)]
    limit = usual if args.limit is None else args.limit
    Random(f"{args.seed} {name}").shuffle(every)
    return every[: limit or None]


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _run_all(waiting: Sequence[Trial], whole: Path, temporary: Path, log: Path, args: argparse.Namespace) -> None:
    """Run trials in so many processes, each with a copy of the project."""
    if args.jobs <= 1:
        _run_some(waiting, Bench(whole, temporary / "bench"), log, args)
        return
    shares = [
        CONTEXT.Process(
            target=_run_some, args=(waiting[job :: args.jobs], Bench(whole, temporary / f"bench-{job}"), log, args)
        )
        for job in range(args.jobs)
    ]
    for share in shares:
        share.start()
    for share in shares:
        share.join()


def _run_some(waiting: Sequence[Trial], bench: Bench, log: Path, args: argparse.Namespace) -> None:
    bench.folder.mkdir(parents=True)
    for trial in waiting:
        bench.restore()
        found = trial.run(bench, Random(f"{args.seed} {trial.name}"))
        with log.open("a") as file:
            file.write(json.dumps(found.as_json()) + "\n")
        if found.verdict not in RIGHT or args.trial is not None:
            _say(found)


def _say(found: Outcome) -> None:
    out.print(Text(f"{found.verdict}: {found.name}"), style="red" if found.verdict not in RIGHT else "", soft_wrap=True)
    out.print(Text(f"  lightning-attr {found.command}\n  " + found.said[-600:].replace("\n", "\n  ")), soft_wrap=True)


def read(log: Path) -> list[Outcome]:
    """Return the outcomes that a file keeps."""
    lines = log.read_text().splitlines() if log.exists() else []
    return list({each.name: each for each in (Outcome(**json.loads(line)) for line in lines)}.values())


def table(outcomes: Iterable[Outcome]) -> Table:
    """Return the counts of verdicts by kind of trial."""
    found = list(outcomes)
    counts = Counter((each.name.partition("/")[0], each.verdict) for each in found)
    made = Table("trials of", "in all", *VERDICTS, title="what became of trials", title_justify="left")
    for column in made.columns[1:]:
        column.justify = "right"
    kinds = dict.fromkeys(kind for kind, _ in counts)
    for kind in kinds:
        row = [counts[kind, verdict] for verdict in VERDICTS]
        made.add_row(kind, str(sum(row)), *map(str, row))
    if len(kinds) > 1:
        made.add_row("all", str(len(found)), *(str(sum(counts[k, v] for k in kinds)) for v in VERDICTS))
    return made
