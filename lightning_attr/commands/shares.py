"""Shares: ``lightning-attr shares fit SET SCORES... --out FILE``, ``shares check SET SCORES... --shares FILE``.

``fit`` finds what turns a method's scores into shares on the validation split of an AbC set, and measures on its test
split how far these are from what is due. ``check`` measures it again. SCORES are files of one method over the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lightning_attr.abc.known import against_truth, known_queries, read_scores
from lightning_attr.abc.set import SPLITS, AbcSet
from lightning_attr.artifacts import read_json, write_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.artifacts.tensors import unknown_as_null
from lightning_attr.commands.targets import expect_like
from lightning_attr.console import made, out, print_table
from lightning_attr.encoders import encoders_digest
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.figures import reliability_figure
from lightning_attr.ground_truth.metrics import Reliability, calibration_error, reliability_bins
from lightning_attr.options import first_word, parsed, parser
from lightning_attr.shares import MOST_ERROR, Known, Shares, SoftAttribution, fitted

VERBS = ("fit", "check")


def main(arguments: Sequence[str]) -> None:
    """Run the verb that the first word names."""
    if (verb := first_word("shares", arguments, VERBS)) is None:
        return
    of = parser(f"shares {verb}", __doc__)
    of.add_argument("set", type=Path, help="the folder of an AbC set")
    of.add_argument("scores", nargs="+", help="scores.safetensors of one method over it")
    if verb == "fit":
        of.add_argument("--out", type=Path, required=True, help="the file to write")
    else:
        of.add_argument("--shares", type=Path, required=True, help="the file to check")
        of.add_argument("--split", type=str, default="test", help="which models to check on")
    of.add_argument("--figure", type=Path | None, default=None, help="draw the reliability diagram into this PNG")
    of.add_argument("--json", type=Path | None, default=None, help="write the numbers into this file")
    args = parsed(of, arguments[1:])
    expect_like("--json", args.json, "the numbers of a calibration", _read_numbers)
    expect_like("--figure", args.figure, "a reliability diagram", _read_figure)
    abc = AbcSet.load(args.set)
    scores = read_scores(abc, args.scores)
    if verb == "fit":
        _fit(args, abc, scores)
    else:
        _check(args, abc, scores)


def _fit(args: Any, abc: AbcSet, scores: dict[str, Scores]) -> None:
    first = next(iter(scores.values()))
    expect_like("--out", args.out, "shares", Shares.load)
    soft = fitted(known_queries(abc, scores, "validation"))
    calibration: dict[str, Any] = {}
    if any(model.split == "test" for model in abc.models):
        calibration, bins = _calibration(soft, known_queries(abc, scores, "test"), "test")
        _show(calibration, bins)
        _write(args, calibration, bins, first.method)
    else:
        out.print("no test split: nobody knows how far the shares are from what is due")
    encoders = encoders_digest(abc.gallery)
    digests = {"gallery": abc.gallery.digest, "queries": abc.queries.digest}
    settings = {
        "of_method": first.of_method,
        "gallery": len(first.sample_id),
        "digests": digests if encoders is None else {**digests, "encoders": encoders},
        "calibration": calibration,
    }
    shares = Shares(soft, first.method, settings)
    shares.save(args.out)
    if shares.error > MOST_ERROR:
        out.print(f"not within {MOST_ERROR}: no share by this file is shown anywhere", soft_wrap=True)
    made([args.out, *(path for path in (args.figure, args.json) if path is not None and calibration)])


def _check(args: Any, abc: AbcSet, scores: dict[str, Scores]) -> None:
    if args.split not in SPLITS:
        raise UserError(f"--split: found {args.split!r}, expected one of {', '.join(SPLITS)}")
    shares = Shares.load(args.shares)
    for path, each in scores.items():
        if (reason := shares.unfit(each, encoders_digest(abc.gallery))) is not None:
            raise UserError(f"{path}: {args.shares} has no shares of these scores: {reason}")
    calibration, bins = _calibration(shares.soft, known_queries(abc, scores, args.split), args.split)
    _show(calibration, bins)
    _write(args, calibration, bins, shares.method)
    if new := [path for path in (args.figure, args.json) if path is not None]:
        made(new)


def _calibration(soft: SoftAttribution, known: Sequence[Known], split: str) -> tuple[dict[str, Any], Reliability]:
    """Return the numbers as JSON holds them, null what is unknown of one model, and the bins."""
    shares, truth, unit = against_truth(soft, known)
    found, bins = calibration_error(shares, truth, unit), reliability_bins(shares, truth)
    about = {"split": split, "models": len(known), "queries": sum(len(block.scores) for block in known)}
    return unknown_as_null({**about, "error": list(found.error), "by_chance": found.by_chance}), bins


def _show(calibration: dict[str, Any], bins: Reliability) -> None:
    table = Table(title="shares and what is due", title_justify="left")
    for column in ("share of an entry", "is due", "part of all", "is due"):
        table.add_column(column, justify="right")
    for share, truth, mass, due in zip(*(column.tolist() for column in bins), strict=True):
        if share == share:  # a bin without entries is NaN
            table.add_row(f"{share:.4f}", f"{truth:.4f}", f"{mass:.1%}", f"{due:.1%}")
    print_table(table)
    (error, low, high), chance = calibration["error"], calibration["by_chance"]
    known = f", 95% interval {low:.3f} to {high:.3f}, {chance:.3f} by chance" if low is not None else ""
    of = f"{calibration['models']} models, {calibration['queries']} queries of the {calibration['split']} split"
    out.print(f"calibration error {error:.3f}{known}; {of}", soft_wrap=True)


def _read_numbers(path: Path) -> None:
    found = read_json(path)
    if not isinstance(found, dict) or "by_chance" not in found:
        raise UserError(f"{path}: found no numbers of a calibration")


def _read_figure(path: Path) -> None:
    if b"Matplotlib" not in path.read_bytes()[:2000]:  # a figure's beginning names what has drawn it
        raise UserError(f"{path}: found no figure of ours")


def _write(args: Any, calibration: dict[str, Any], bins: Reliability, method: str) -> None:
    if args.json is not None:
        columns = {name: column.tolist() for name, column in bins._asdict().items()}
        write_json(args.json, {**calibration, "method": method, "bins": columns})
    if args.figure is not None:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        reliability_figure(bins, method).savefig(args.figure, format="png", dpi=120)
