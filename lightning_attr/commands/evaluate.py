"""Check scores against the pack of a sweep, without retraining: `python -m tools.evaluate PACK SCORES...`.

PACK is one of the two files of a pack or their common name, such as `runs/demo/sweep/pack`. Files of scores that are of
the same method and settings count as one. Without scores, the tables say what the pack itself knows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_attr.artifacts import write_json
from lightning_attr.cli import FinishedError, run_stage
from lightning_attr.console import out, run
from lightning_attr.errors import UserError
from lightning_attr.ground_truth import Evaluated, as_json, evaluate, read_scores
from lightning_attr.ground_truth.pack import Pack, pack_files, unpack
from lightning_attr.ground_truth.tables import tables
from lightning_attr.tasks import Evaluation


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate", description=__doc__)
    parser.add_argument("pack", type=Path, metavar="PACK")
    parser.add_argument("scores", nargs="*", metavar="SCORES", help="scores.safetensors of any number of methods")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="make a run of it: metrics.json, figures, TensorBoard"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument(
        "--queries",
        type=_span,
        metavar="FIRST-LAST",
        help="those queries alone, such as ones that settings were not chosen on",
    )
    parser.add_argument("--unpack", type=Path, metavar="FOLDER", help="write the original, queries and sample ids")
    args = parser.parse_intermixed_args(arguments)
    if args.out is not None and args.queries is not None:
        raise UserError("--queries: found it with --out, expected one of them: a run is of all queries")
    pack = Pack.load(args.pack)
    if args.unpack is not None:
        unpack(pack, args.unpack)
    evaluated = _run(args.out, args.pack, args.scores) if args.out is not None else None
    if evaluated is None:
        evaluated = _evaluate(pack, args.scores, args.queries)
    for table in tables(evaluated):
        out.print(table)
    if args.json is not None:
        write_json(args.json, as_json(evaluated))


def _span(text: str) -> range:
    first, _, last = text.partition("-")
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
            ["test", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]
        ).model
    except FinishedError:
        return None
    assert isinstance(task, Evaluation)
    return task.evaluated


if __name__ == "__main__":
    run(main)
