"""Check scores against the pack of a sweep, without retraining: ``lightning-attr evaluate PACK SCORES...``.

PACK is one of the two files of a pack or their common name, such as ``runs/demo/sweep/pack``. Files of scores of
the same method and settings count as one. Without scores, the tables say what the pack itself knows.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning_attr.artifacts import write_json
from lightning_attr.cli import FinishedError, run_stage
from lightning_attr.commands.targets import expect_like, expect_own
from lightning_attr.console import command, made, out, print_table
from lightning_attr.errors import UserError
from lightning_attr.ground_truth import Evaluated, as_json, evaluate, read_scores
from lightning_attr.ground_truth.pack import Pack, pack_files, unpack
from lightning_attr.ground_truth.records import read_records
from lightning_attr.ground_truth.tables import tables
from lightning_attr.options import files_first, parsed, parser
from lightning_attr.tasks import Evaluation


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    of = parser("evaluate", __doc__)
    of.add_argument("pack", type=Path)
    of.add_argument("scores", nargs="*", help="scores.safetensors of any number of methods")
    of.add_argument("--out", type=Path | None, default=None, help="make a run: metrics.json, figures, TensorBoard")
    of.add_argument("--json", type=Path | None, default=None, help="write the numbers into this file")
    of.add_argument(
        "--queries",
        type=str | None,
        default=None,
        help="FIRST-LAST: those alone, such as ones that settings were not chosen on",
    )
    of.add_argument("--unpack", type=Path | None, default=None, help="write the original, queries and sample ids here")
    args = parsed(of, files_first(arguments))
    if not args.pack.name:
        raise UserError(f"pack: found the folder {args.pack}, expected a pack in it, such as {args.pack / 'pack'}")
    expect_like("--json", args.json, "the numbers of an evaluation", partial(read_records, kind=Evaluated))
    if args.out is not None:
        expect_own("--out", args.out, "manifest.json")
    if args.out is not None and args.queries is not None:
        raise UserError("--queries: found it with --out, expected one of them: a run is of all queries")
    pack = Pack.load(args.pack)
    if args.unpack is not None:
        unpack(pack, args.unpack)
    evaluated = run = _run(args.out, args.pack, args.scores) if args.out is not None else None
    if evaluated is None:
        evaluated = _evaluate(pack, args.scores, None if args.queries is None else _span(args.queries))
    for table in tables(evaluated):
        print_table(table)
    if args.json is not None:
        write_json(args.json, as_json(evaluated))
    if new := [path for path in (args.unpack, args.out if run else None, args.json) if path is not None]:
        made(new, command("report", args.out) if run else None)


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise UserError(f"--queries: found {text!r}, expected FIRST-LAST, such as 20-59")
    return range(int(first), int(last or first) + 1)


def _evaluate(pack: Pack, paths: Sequence[str], queries: range | None) -> Evaluated:
    scores = read_scores(paths, pack)
    if queries is None:
        return evaluate(pack, scores)
    return evaluate(pack.of_queries(queries), {name: each.of_queries(queries) for name, each in scores.items()})


def _run(folder: Path, pack: Path, scores: Sequence[str]) -> Evaluated | None:
    """Run the same as a stage; None where it is finished already."""
    settings = {
        "trainer.default_root_dir": folder,
        "trainer.accelerator": "cpu",
        "model": "lightning_attr.tasks.Evaluation",
        "model.init_args.pack": pack_files(pack)[0],
        "model.init_args.scores": list(scores),
    }
    try:
        task = run_stage(
            [
                "test",
                *(["-q"] if out.quiet else []),
                *(word for key, value in settings.items() for word in (f"--{key}", str(value))),
            ]
        ).model
    except FinishedError:
        return None
    assert isinstance(task, Evaluation)
    return task.evaluated
