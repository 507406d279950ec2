"""The published layout of the AbC data: which images each tuned model saw, and which it made, by its JSON files.

A folder, ``dataset`` as its authors call it::

    exemplar/CASE/...                               what models were tuned on
    synth/CASE/KIND/MODEL/samples/NNNNN.png         what they made, by kind of prompt: gpt, media, object
    laion_subset/...                                distractors
    json/SPLIT_CASE.json                            a list: of each model ``exemplar``, ``synth``, ``class_id``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_attr.artifacts import read_json
from lightning_attr.errors import UserError, quoted

#: The first word of a JSON file's name, and the split that it means.
SPLITS: Mapping[str, str] = {"train": "train", "val": "validation", "test": "test"}

#: The folder of distractors.
DISTRACTORS = "laion_subset"


@dataclass(frozen=True)
class Tuned:
    """A tuned model as the layout has it; files are named within the folder.

    Args:
        name: Its case and class.
        case: Such as ``artchive``, ``bamfg`` or ``observed_imagenet``.
        split: ``train``, ``validation`` or ``test``.
        exemplars: What it was tuned on.
        queries: What it made, by kind of prompt.
    """

    name: str
    case: str
    split: str
    exemplars: tuple[str, ...]
    queries: Mapping[str, tuple[str, ...]]


def read_layout(folder: Path, path: Path) -> list[Tuned]:
    """Read a JSON file of the layout.

    Args:
        folder: That in which ``exemplar`` and ``synth`` lie.
        path: The JSON file; its name tells split and case.

    Raises:
        UserError: It is not of the layout, or a file that it names is not there.
    """
    first, _, case = path.stem.partition("_")
    if first not in SPLITS or not case:
        raise UserError(f"{path}: found the name {quoted(path.name)}, expected one such as test_bamfg.json")
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: found {quoted(entries)}, expected a list of tuned models")
    return [_tuned(folder, f"{path}: entry {place}", each, case, SPLITS[first]) for place, each in enumerate(entries)]


def _tuned(folder: Path, where: str, entry: Any, case: str, split: str) -> Tuned:
    keys = ("exemplar", "synth", "class_id")
    if not isinstance(entry, dict) or not entry.keys() >= {*keys}:
        raise UserError(f"{where}: found {quoted(entry)}, expected {', '.join(keys)}")
    if not isinstance(entry["synth"], dict):
        raise UserError(f"{where}: found synth {quoted(entry['synth'])}, expected files by kind of prompt")
    exemplars = _files(folder, f"{where}: exemplar", entry["exemplar"], "exemplar")
    queries = {
        kind: _files(folder, f"{where}: synth of {kind}", files, "synth") for kind, files in entry["synth"].items()
    }
    return Tuned(f"{case}/{entry['class_id']}", case, split, exemplars, queries)


def _files(folder: Path, where: str, found: Any, root: str) -> tuple[str, ...]:
    """Return files from the folder on that they are in, such as ``exemplar``; what stands before it may differ."""
    if not isinstance(found, Sequence) or isinstance(found, str) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{where}: found {quoted(found)}, expected a list of files")
    return tuple(_within(folder, where, name, root) for name in found)


def _within(folder: Path, where: str, name: str, root: str) -> str:
    parts = PurePosixPath(name).parts
    if root not in parts or ".." in parts or "\0" in name:
        raise UserError(f"{where}: found the path {quoted(name)}, expected one within {root}")
    inner = str(PurePosixPath(*parts[parts.index(root) :]))
    if not (folder / inner).is_file():
        raise UserError(f"{where}: found no file {folder / inner}")
    return inner
