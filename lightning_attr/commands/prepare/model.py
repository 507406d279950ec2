"""Unpack a model that lies in one file: ``lightning-attr prepare model FILE --like FOLDER --out FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_attr.console import made
from lightning_attr.errors import UserError
from lightning_attr.models.single_file import unpack
from lightning_attr.options import parsed, parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    if args.out.exists():
        raise UserError(f"--out {args.out}: found something there, expected a new folder")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    unpack(args.file, args.like, args.out)
    made([args.out])


def _parser() -> ArgumentParser:
    of = parser("prepare model", __doc__)
    of.add_argument("file", type=Path, help="a .safetensors of a whole model, or of its network alone")
    of.add_argument("--like", type=Path, required=True, help="the folder of a pipeline of the same family")
    of.add_argument("--out", type=Path, required=True, help="the folder to make, which all stages take as a model")
    return of
