"""Files that are there as a whole or not at all: tensors with a checksum, and JSON.

Artefacts are safetensors files. Neither safetensors nor torch notices a flipped bit, so the header carries a checksum.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_attr.artifacts.before import kind_before, scores_checksum_before
from lightning_attr.errors import UserError, causes, one_line, system_error

FORMAT = "1"
"""Of the headers."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, whatever kills the process.

    Raises:
        UserError: The system refuses it: no space, no permission, a folder in the way.
    """
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when it is whole. An error leaves what is there.

    Raises:
        UserError: The system refuses it: no space, no permission, a folder in the way.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a device would be replaced
        raise UserError(f"{path}: found a device or a pipe, expected a file or none")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = _temporary(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except Exception as error:  # torch has errors of its own about a system's error
        if (refused := next((each for each in causes(error) if isinstance(each, OSError)), None)) is None:
            raise
        raise system_error(refused, path) from error


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    """Make a file beside ``path`` that no one else has and no link leads to; remove what killed processes left there.

    A lock tells whether the process lives. It ends with the process.
    """
    for left in path.parent.glob(f".{escape(path.name)}.*tmp"):
        with suppress(OSError), left.open("rb+") as dead:
            flock(dead, LOCK_EX | LOCK_NB)
            left.unlink()
    while True:
        temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
        file = temporary.open("xb")
        with suppress(OSError):  # where there are no locks nothing is removed either
            flock(file, LOCK_EX)
        if temporary.exists():  # not removed by another process before it was locked
            return temporary, file
        file.close()


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: (tensors, metadata), unchecked.

    Raises:
        UserError: The file is missing or not a safetensors file.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, dict(file.metadata() or {})


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({one_line(error)})") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically; NaN, which is unknown and for which JSON has no word, as null."""
    write_atomically(path, (json.dumps(unknown_as_null(value), indent=2, sort_keys=True) + "\n").encode())


def unknown_as_null(value: Any) -> Any:
    """Return nested mappings and sequences with None in the place of every NaN."""
    if isinstance(value, Mapping):
        return {name: unknown_as_null(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [unknown_as_null(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: It is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise system_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({one_line(error)})") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: It is missing, not JSON, or something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: found a {type(found).__name__}, expected a config")
    return found


@dataclass(frozen=True)
class Header:
    """What a file of tensors says of itself.

    Attributes:
        kind: What it holds, such as ``losses``; ``unknown`` of files that are not ours.
        settings: All that it was made from: numbers and names, and the ``digests`` of files.
        words: Further words, such as the method of scores.
    """

    kind: str
    settings: Mapping[str, Any]
    words: Mapping[str, str]

    @classmethod
    def of(cls, metadata: Mapping[str, str], names: Collection[str]) -> Header:
        """Read the metadata of a safetensors file."""
        settings = json.loads(metadata.get("settings", "{}"), parse_constant=_no_number)
        kind = metadata.get("kind") or kind_before(names, settings)
        own = ("checksum", "format", "kind", "settings")
        return cls(kind, settings, {name: word for name, word in metadata.items() if name not in own})


def _no_number(word: str) -> None:
    """Refuse what JSON has no word for: no setting is NaN or infinite.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{word} is no number")


def save_tensors(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **words: str
) -> None:
    """Save named tensors with their header in one safetensors file, atomically and with a checksum.

    Args:
        path: The file.
        kind: What it holds, such as ``losses``.
        tensors: By name.
        settings: All that they were made from; anything that JSON can hold.
        words: Further words for the header.

    Raises:
        ValueError: A setting is NaN or infinite, which :class:`Header` would refuse.
    """
    text = json.dumps(dict(settings), sort_keys=True, allow_nan=False)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    metadata = {"kind": kind, "format": FORMAT, "settings": text, **words}
    write_atomically(path, _ordered(save(plain, {**metadata, "checksum": _checksum(plain, metadata)})))


def _ordered(data: bytes) -> bytes:
    """Return a safetensors file with its header in order: the library's differs from process to process.

    So the same contents are the same bytes, and what names a file by the digest of its bytes finds it made anew.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(data)[end:]])


def read_header(path: str | Path) -> Header:
    """Read what a file of tensors says of itself, unchecked, and without the tensors.

    Raises:
        UserError: The file is missing, not a safetensors file, or its header is damaged.
    """
    with _opened(path) as file:
        metadata, names = dict(file.metadata() or {}), list(file.keys())
    if not _is_ours(metadata):
        return Header("unknown", {}, {})
    return _header(path, metadata, names)


def _header(path: str | Path, metadata: Mapping[str, str], names: Collection[str]) -> Header:
    try:
        return Header.of(metadata, names)
    except ValueError as error:
        raise UserError(f"{path}: damaged, its settings are not JSON ({one_line(error)})") from error


def load_tensors(path: str | Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what :func:`save_tensors` saved: (tensors, settings).

    Args:
        path: The file.
        kinds: What it may hold; none is anything.

    Raises:
        UserError: The file is missing, damaged, not one of ours, or of another kind.
    """
    tensors, header = load_artifact(path, *kinds)
    return tensors, dict(header.settings)


def load_artifact(path: str | Path, *kinds: str) -> tuple[dict[str, Tensor], Header]:
    """Load what :func:`save_tensors` saved, as :func:`load_tensors` does, with the whole header."""
    tensors, metadata = read_safetensors(path)
    if not _is_ours(metadata):
        raise UserError(f"{path}: found no checksum in its header, expected an artefact of lightning-attr")
    if (found := metadata.get("format", FORMAT)) != FORMAT:  # of which the checksum may be another one
        raise UserError(f"{path}: found format {found}, expected {FORMAT}")
    if _checksum(tensors, metadata) != metadata["checksum"]:
        raise UserError(f"{path}: damaged, its checksum does not match its contents")
    header = _header(path, metadata, tensors)
    if kinds and header.kind not in kinds:
        raise UserError(f"{path}: found {header.kind}, expected {' or '.join(kinds)}")
    return tensors, header


def _is_ours(metadata: Mapping[str, str]) -> bool:
    return {"checksum", "settings"} <= metadata.keys()


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    covered = {name: word for name, word in metadata.items() if name != "checksum"}
    if "kind" in covered:
        return xxhash.xxh3_128_hexdigest((tensors_digest(tensors) + json.dumps(covered, sort_keys=True)).encode())
    if "method" in covered:
        return scores_checksum_before(tensors, covered)
    return xxhash.xxh3_128_hexdigest((tensors_digest(tensors) + covered["settings"]).encode())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes, types and bytes of ``tensors``."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values, in their order."""
    whole = tensor.detach().cpu().contiguous()
    # A single number is contiguous by whatever stride, which a view as bytes does not take.
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy().data
