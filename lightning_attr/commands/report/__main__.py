"""Make one self-contained HTML page of what a run found: `python -m lightning_attr.commands.report RUN [--out FILE]`.

RUN is a folder such as `runs/demo`. Every folder in it, at any depth, that has a `manifest.json` is a stage. What is
missing or unfinished is named on the page.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_attr.artifacts import write_atomically
from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.page import render
from lightning_attr.console import out, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m lightning_attr.commands.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page to write, default RUN/report.html")
    args = parser.parse_args(arguments)
    target = args.out or args.run / "report.html"
    page = render(collect(args.run)).encode()
    write_atomically(target, page)
    out.print(f"{target}: {len(page) / 1e6:.1f} MB", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
