"""Make one self-contained HTML page of what a run found: ``lightning-attr report RUN``.

RUN is a folder such as ``runs/demo``. Every folder in it, at any depth, that has a ``manifest.json`` is a stage. What
is missing or unfinished is named on the page.
"""

from collections.abc import Sequence
from pathlib import Path

from lightning_attr.artifacts import write_atomically
from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.page import render
from lightning_attr.commands.targets import expect_like
from lightning_attr.console import made
from lightning_attr.errors import UserError
from lightning_attr.options import parsed, parser
from lightning_attr.shares import Shares

#: What is near the beginning of every page.
MARK = b"<title>Which training images made these?"


def _read_page(path: Path) -> None:
    if MARK not in path.read_bytes()[:2000]:
        raise UserError(f"{path}: found no report")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    of = parser("report", __doc__)
    of.add_argument("run", type=Path, help="the folder of a run")
    of.add_argument("--out", type=Path | None, default=None, help="the page to write, default RUN/report.html")
    of.add_argument("--grouping", type=str | None, default=None, help="whose groups contribute: an attribute or a file")
    of.add_argument("--shares", type=Path | None, default=None, help="show shares: a file of lightning-attr shares fit")
    args = parsed(of, arguments)
    target = args.out or args.run / "report.html"
    expect_like("--out", target, "a report", _read_page)
    shares = None if args.shares is None else Shares.load(args.shares)
    if shares is not None:
        shares.expect_calibrated(args.shares)
    page = render(collect(args.run, shares), args.grouping).encode()
    write_atomically(target, page)
    made([target])
