"""Check scores against an AbC set: ``lightning-attr abc table FILES... --set SET``.

FILES are scores over the gallery of the set; of a method that needs a model's own weights, a file for each model. What
``--keep`` wrote is as good as scores, and needs no set.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from lightning_attr.abc import AbcRanks, AbcSet, Line, MethodRanks, lines, ranks_of, tables
from lightning_attr.abc.ranks import KIND
from lightning_attr.artifacts import read_header, write_json
from lightning_attr.commands.targets import expect_like
from lightning_attr.console import made, print_table
from lightning_attr.errors import UserError
from lightning_attr.ground_truth import as_json
from lightning_attr.ground_truth.records import read_records
from lightning_attr.options import files_first, parsed, parser


def main(arguments: Sequence[str]) -> None:
    """Run the action."""
    of = parser("abc table", __doc__)
    of.add_argument("files", nargs="+", help="scores.safetensors of any number of methods, or what --keep wrote")
    of.add_argument("--set", type=Path | None, default=None, help="the set that the scores are of")
    of.add_argument(
        "--split",
        type=Literal["train", "validation", "test", "all"],
        default="test",
        help="which models: settings and features may have been chosen on those of the other splits",
    )
    of.add_argument("--keep", type=Path | None, default=None, help="write all that the table is made from into this")
    of.add_argument("--json", type=Path | None, default=None, help="write the numbers into this file")
    args = parsed(of, files_first(arguments))
    expect_like("--keep", args.keep, "what --keep wrote", AbcRanks.load)
    expect_like("--json", args.json, "the numbers of a table", partial(read_records, kind=list[Line]))
    found = _read(args.files, args.set)
    measured = lines(found, None if args.split == "all" else args.split)
    for table in tables(measured):
        print_table(table)
    if args.keep is not None:
        found.save(args.keep)
    if args.json is not None:
        write_json(args.json, as_json(measured))
    if new := [path for path in (args.keep, args.json) if path is not None]:
        made(new)


def _read(paths: Sequence[str], folder: Path | None) -> AbcRanks:
    """Return the ranks by all files, of scores and kept ones.

    Raises:
        UserError: They are of different sets, a method is there twice, or there are scores and no set.
    """
    kept = [path for path in paths if read_header(path).kind == KIND]
    scores = [path for path in paths if path not in kept]
    if scores and folder is None:
        raise UserError(f"--set: found none, expected the set that {scores[0]} is of")
    parts = [(path, AbcRanks.load(path)) for path in kept]
    if folder is not None:
        of = AbcSet.load(folder)
        parts.insert(0, (str(folder), AbcRanks(of.models, of.digests, ranks_of(of, scores))))
    where, first = parts[0]
    methods: dict[str, MethodRanks] = {}
    for path, part in parts:
        if part.digests != first.digests or part.models != first.models:
            raise UserError(f"{path}: found another set than in {where}, expected the same")
        for each in part.methods:
            if each.method in methods:
                raise UserError(f"{path}: found {each.method} again, expected each method once")
            methods[each.method] = each
    if not methods:
        raise UserError(f"{where}: found no method, expected at least one")
    return AbcRanks(first.models, first.digests, tuple(methods.values()))
