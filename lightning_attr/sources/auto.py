"""Find out of which kind a source is, and open it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Literal, get_args

from lightning_attr.errors import UserError, quoted
from lightning_attr.sources.base import Faults, Source, key_of
from lightning_attr.sources.coco import Coco, folder_of
from lightning_attr.sources.folder import Folder
from lightning_attr.sources.metadata import NAMES, Metadata
from lightning_attr.sources.parquet import Parquet
from lightning_attr.sources.table import Columns
from lightning_attr.sources.tree import IMAGES, Leaf, leaves
from lightning_attr.sources.webdataset import WebDataset

Kind = Literal["coco", "folder", "metadata", "parquet", "webdataset"]

_COCO = "captions_*.json"
#: The shards of a split of Hugging Face datasets: ``train-00000-of-00002.parquet``.
_SPLIT = re.compile(r"(.*)-\d{5}-of-\d{5}")


def open_source(path: str, kind: Kind | None, prompt: str | None, columns: Columns, faults: Faults) -> Source:
    """Open a source of images.

    Args:
        path: A folder, a file, or a pattern of files with ``*``.
        kind: What it is; None finds out.
        prompt: The caption of all images of a folder.
        columns: Of tables.
        faults: Takes note of names that are no Unicode.

    Raises:
        UserError: Nothing is there, it could be of several kinds, or the kind has no use for an option.
    """
    files = _files(path, faults)
    kind = kind or _kind(path, files)
    if prompt is not None and kind != "folder":
        raise UserError(f"--prompt: found {quoted(prompt)} for a source of kind {kind}, expected none: it has captions")
    named = {name: value for name, value in vars(columns).items() if value is not None}
    for name, value in named.items():
        if kind in ("coco", "folder") or (kind == "webdataset" and name == "image"):
            raise UserError(f"--{name}_column: found {quoted(value)}, expected none for a source of kind {kind}")
    if kind == "folder":
        return Folder(path, files, prompt)
    if kind == "metadata":
        return Metadata(path, files, columns)
    if kind == "parquet":
        return Parquet(_shards(path, files, ".parquet"), columns)
    if kind == "webdataset":
        return WebDataset(_shards(path, files, ".tar"), columns)
    captions = [leaf.path for leaf in files if leaf.path.match(_COCO) or str(leaf.path) == path]
    if len(captions) != 1:
        raise UserError(f"{path}: found {len(captions)} captions files, expected the path of one: {_COCO}")
    return Coco(folder_of(captions[0]), captions[0])


def _files(path: str, faults: Faults) -> list[Leaf]:
    """Return the files that a path means; keys begin where their folders part."""
    if os.path.isdir(path):
        return leaves(Path(path), faults)
    found = [Path(each) for each in ([path] if os.path.exists(path) else glob(path, recursive=True))]
    if not found:
        raise UserError(f"{path}: found no such file or folder")
    root = os.path.commonpath([each.parent.absolute() for each in found])
    return [Leaf(key_of(each.absolute().relative_to(root).as_posix()), each) for each in found]


def _kind(path: str, files: Sequence[Leaf]) -> Kind:
    """Return of which kind files are."""
    endings = {leaf.suffix for leaf in files}
    kinds: list[Kind] = []
    if ".tar" in endings:
        kinds.append("webdataset")
    elif ".parquet" in endings:  # img2dataset leaves one beside each tar
        kinds.append("parquet")
    if any(leaf.path.name in NAMES for leaf in files):
        kinds.append("metadata")
    elif any(leaf.path.match(_COCO) for leaf in files) or (len(files) == 1 and endings == {".json"}):
        kinds.append("coco")
    elif endings & IMAGES:
        kinds.append("folder")
    if len(kinds) != 1:
        others = f"files of endings {', '.join(sorted(map(repr, endings))[:5])}" if endings else "no files"
        found = " and ".join(kinds) or others
        raise UserError(f"{path}: found {found}, expected one kind of {', '.join(get_args(Kind))} (see --kind)")
    return kinds[0]


def _shards(path: str, files: Sequence[Leaf], suffix: str) -> list[Leaf]:
    """Return the files of an ending, which must be of one split."""
    shards = [leaf for leaf in files if leaf.suffix == suffix]
    if not shards:
        raise UserError(f"{path}: found no {suffix} files")
    splits = sorted({match[1] for leaf in shards if (match := _SPLIT.match(leaf.key))})
    if len(splits) > 1:
        raise UserError(f"{path}: found splits {', '.join(splits)}, expected one: a pattern such as '{splits[-1]}-*'")
    return shards
