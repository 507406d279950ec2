"""Make a model that others can take: of a file of weights a folder, of a checkpoint one without its optimizer.

    lightning-attr prepare model FILE.safetensors --like FOLDER --out FOLDER
    lightning-attr prepare model FILE.ckpt --out FILE.ckpt [--half true]

The first unpacks a model that lies in one file. The second keeps of a training's checkpoint what makes the model, the
averaged weights where there are some; no training goes on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from lightning_attr.artifacts import whole_file
from lightning_attr.artifacts.checkpoint_files import model_alone, with_digests
from lightning_attr.console import made
from lightning_attr.errors import UserError
from lightning_attr.models import load
from lightning_attr.models.single_file import unpack
from lightning_attr.options import parsed, parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    if args.out.exists():
        raise UserError(f"--out {args.out}: found something there, expected a new place")
    of_checkpoint = args.file.suffix == ".ckpt" and args.like is None
    if not of_checkpoint and args.like is None:
        raise UserError(f"--like: found none, expected the folder of a pipeline that {args.file} is like")
    if of_checkpoint and args.out.suffix != ".ckpt":
        raise UserError(f"--out {args.out}: expected the name of a .ckpt, as {args.file} is one")
    if not of_checkpoint and args.half:
        raise UserError("--half: expected it with a checkpoint alone; a folder's weights stay as the file has them")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if of_checkpoint:
        _keep_model(args.file, args.out, torch.float16 if args.half else torch.float32)
    else:
        unpack(args.file, args.like, args.out)
    made([args.out])


def _keep_model(path: Path, out: Path, dtype: torch.dtype) -> None:
    load(path)  # refuses what is no model of ours
    with whole_file(out) as file:
        torch.save(with_digests(model_alone(path, dtype)), file)


def _parser() -> ArgumentParser:
    of = parser("prepare model", __doc__)
    of.add_argument("file", type=Path, help="a .safetensors of a whole model, or of its network alone; or a .ckpt")
    of.add_argument("--like", type=Path | None, default=None, help="the folder of a pipeline of the same family")
    of.add_argument("--out", type=Path, required=True, help="what to make; all stages take it as a model")
    of.add_argument("--half", type=bool, default=False, help="keep a checkpoint's weights in half precision")
    return of
