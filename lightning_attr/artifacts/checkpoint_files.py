"""Files of checkpoints, as ``torch.save`` writes them: read without running code, and checked by digests of their own.

PyTorch neither checks the checksums in its files nor that a record was read at all: one bit of the ZIP directory makes
it hand out memory as it was. So a checkpoint carries a digest of all that is in it. A second one is of the model alone,
which a run that was stopped and resumed shares with one that was not: their counters of progress differ.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from lightning_attr.artifacts.tensors import tensor_bytes
from lightning_attr.errors import UserError, one_line

#: The key of a checkpoint's digests.
DIGESTS = "digests"

#: What of a checkpoint makes the model: two that agree in these are one model.
MODEL = ("state_dict", "trained_model")

#: What else whoever reads it needs: where its base lies, and whose format it is.
BESIDE_MODEL = ("base", "pytorch-lightning_version")


def with_digests(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with its digests: of its model, where it holds one, and of everything."""
    own = {key: value for key, value in checkpoint.items() if key != DIGESTS}
    if all(key in own for key in MODEL):
        own[DIGESTS] = {"model": content_digest({key: own[key] for key in MODEL})}
    return own | {DIGESTS: {**own.get(DIGESTS, {}), "all": content_digest(own)}}


def content_digest(value: Any) -> str:
    """Return a digest of nested mappings, sequences, tensors and plain values, whatever the order of the mappings."""
    digest = xxhash.xxh3_128()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}\n".encode()
        yield tensor_bytes(value)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}\n".encode()
        for key in sorted(value, key=repr):
            yield from _parts(key)
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}\n".encode()
        for each in value:
            yield from _parts(each)
    else:
        yield f"{value!r}\n".encode()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code from it.

    Raises:
        UserError: There is none, it is damaged, or it holds more than tensors and plain values.
    """
    checkpoint = _read(path, mmap=False)
    try:
        if DIGESTS not in checkpoint:  # it was written before there were digests, or by others
            _check_records(path)
        elif with_digests(checkpoint)[DIGESTS] != checkpoint[DIGESTS]:
            raise ValueError("its digest does not match its contents")
    except Exception as error:  # as in `_read`; and a tensor of another layout has no bytes to be digested
        raise _refusal(path, error) from error
    return checkpoint


def model_alone(path: str | Path, dtype: torch.dtype) -> dict[str, Any]:
    """Return what of a checkpoint makes the model, its weights in some precision, without the state of the training.

    Raises:
        UserError: There is no checkpoint, or a weight is beyond what that precision holds.
    """
    checkpoint = read_checkpoint(path)
    kept = {key: checkpoint[key] for key in (*MODEL, *BESIDE_MODEL) if key in checkpoint}
    kept["state_dict"] = {name: weight.to(dtype) for name, weight in checkpoint["state_dict"].items()}
    if beyond := [name for name, weight in kept["state_dict"].items() if not weight.isfinite().all()]:
        raise UserError(f"checkpoint {path}: {beyond[0]}: found a weight beyond {dtype}, expected smaller ones")
    return kept


def model_digest(path: str | Path) -> str | None:
    """Return the digest of its model that a checkpoint carries, unchecked; None where it carries none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return _carried(str(path), found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)  # a run asks several times, and each time a whole checkpoint is taken apart
def _carried(path: str, *state: int) -> str | None:
    """Return the digest of the model in a file that is in this state."""
    try:
        digests = _read(path, mmap=True).get(DIGESTS)
    except UserError:  # no checkpoint of ours
        return None
    found = digests.get("model", digests.get("all")) if isinstance(digests, dict) else None
    return found if isinstance(found, str) else None


def _read(path: str | Path, mmap: bool) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        _check_records(path, but="/data/")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # neither zipfile nor torch.load has an error of its own for a damaged file
        raise _refusal(path, error) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint {path}: found a {type(checkpoint).__name__}, expected a Lightning checkpoint")
    return checkpoint


def _check_records(path: str | Path, but: str | None = None) -> None:
    """Check that a file is one ZIP archive from its first to its last byte, and its records' checksums.

    Args:
        path: The file.
        but: Leave out the checksums of records with this in their names.

    Raises:
        Exception: It is not, or they do not match.
    """
    with zipfile.ZipFile(path) as archive, Path(path).open("rb") as file:
        file.seek(-22, 2)
        if min(record.header_offset for record in archive.infolist()) != 0 or file.read(4) != b"PK\x05\x06":
            raise zipfile.BadZipFile("there are bytes before or after it")
        for record in archive.infolist():
            if record.external_attr & 0x10:  # marks a folder, which torch does not read
                raise zipfile.BadZipFile(f"{record.filename} is no file")
            if but is None or but not in record.filename:
                with archive.open(record) as content:
                    while content.read(1 << 22):  # zipfile checks at the end
                        pass


def _refusal(path: str | Path, error: Exception) -> UserError:
    """Return what to say of a file; not torch's advice on how to trust it."""
    if "weights_only" in str(error):
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it holds more than tensors and plain values"
        return UserError(f"checkpoint {path}: refused, {what}, which could run code")
    return UserError(f"checkpoint {path}: refused, it is damaged or not a checkpoint ({one_line(error)})")
