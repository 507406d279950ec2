"""Artefacts: whole, checked, and without code in them."""

import errno
import json
import math
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from lightning_attr.artifacts import (
    Header,
    load_tensors,
    read_header,
    read_safetensors,
    save_tensors,
    tensors_digest,
    whole_file,
    write_atomically,
    write_json,
)
from lightning_attr.artifacts.checkpoint_files import content_digest
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def test_round_trip(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", "losses", {**TENSORS, "c": torch.eye(3)[:, 1:]}, {"k": [1, "two"]})
    tensors, settings = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert torch.equal(tensors["c"], torch.eye(3)[:, 1:])
    assert settings == {"k": [1, "two"]}


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, "losses", TENSORS, {"k": 1})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            tensors, settings = load_tensors(path)
        except UserError:
            continue
        # A bit that says nothing, such as one of the header's padding.
        assert tensors_digest(tensors) == tensors_digest(TENSORS)
        assert settings == {"k": 1}


def test_truncated_missing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_tensors(path)
    save_tensors(path, "losses", TENSORS, {})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged"):
        load_tensors(path)
    save_file(TENSORS, path)
    with pytest.raises(UserError, match="expected an artefact of lightning-attr"):
        load_tensors(path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"


def test_digests_tell_names_shapes_types_and_values_apart(tmp_path: Path) -> None:
    variants = [
        TENSORS,
        {"a": TENSORS["a"], "c": TENSORS["b"]},
        {**TENSORS, "a": TENSORS["a"].reshape(3, 2)},
        {**TENSORS, "b": torch.tensor(3, dtype=torch.int32)},
        {**TENSORS, "b": torch.tensor(4)},
    ]
    assert len({tensors_digest(variant) for variant in variants}) == len(variants)
    for index, data in enumerate([b"one", b"two"]):
        (tmp_path / str(index)).write_bytes(data)
    assert file_digest(tmp_path / "0") != file_digest(tmp_path / "1")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_setting_is_written_that_would_be_refused(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_tensors(tmp_path / "x", "losses", TENSORS, {"error": [number]})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("digest", [lambda tensor: tensors_digest({"a": tensor}), content_digest])
@pytest.mark.parametrize(
    "tensor",
    [torch.arange(4.0)[::2][:1], torch.arange(6.0).reshape(2, 3).T, torch.arange(6.0)[3:], torch.ones(0, 2).T],
    ids=["one number of stride two", "transposed", "a part", "nothing"],
)
def test_digests_are_of_values_whatever_their_strides(digest: Callable[[Tensor], str], tensor: Tensor) -> None:
    fresh = torch.tensor(tensor.tolist()).reshape(tensor.shape)
    assert digest(tensor) == digest(fresh)
    if tensor.numel():
        assert digest(tensor) != digest(fresh + 1)


def test_what_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, "losses", TENSORS, {"k": 1}, method="m")
    assert read_header(path) == Header("losses", {"k": 1}, {"method": "m"})
    with pytest.raises(UserError, match=r"x\.safetensors: found losses, expected scores or curvature"):
        load_tensors(path, "scores", "curvature")
    save_file(TENSORS, path)
    assert read_header(path).kind == "unknown"
    save_file(TENSORS, path, {"settings": "of another program", "kind": "scores"})
    assert read_header(path) == Header("unknown", {}, {})
    save_file(TENSORS, path, {"settings": "{", "checksum": ""})
    with pytest.raises(UserError, match=r"x\.safetensors: damaged, its settings are not JSON"):
        read_header(path)
    monkeypatch.setattr("lightning_attr.artifacts.tensors.FORMAT", "2")
    save_tensors(path, "losses", TENSORS, {})
    monkeypatch.undo()
    tensors, metadata = read_safetensors(path)
    save_file(tensors, path, {**metadata, "checksum": "of another kind"})
    with pytest.raises(UserError, match="found format 2, expected 1"):
        load_tensors(path)


BEFORE = {
    "losses": ({"losses": torch.ones(2)}, {"draws": 1}),
    "retraining": ({"query_id": torch.ones(1), "removed_id": torch.ones(1)}, {"method": "top", "k": 1}),
    "unlearned weights": ({"a": torch.ones(2)}, {"query": 0, "step_size": 0.1}),
    "mirrored weights": ({"a": torch.ones(2)}, {"query": 0, "forget": 1.0}),
    "curvature": ({"a": torch.ones(2)}, {"kind": "diagonal", "weights": "cross_kv"}),
    "pack": ({"masks": torch.ones(2)}, {"format": 1}),
}


@pytest.mark.parametrize("kind", BEFORE)
def test_files_of_before_headers_had_kinds(tmp_path: Path, kind: str) -> None:
    tensors, settings = BEFORE[kind]
    text = json.dumps(settings, sort_keys=True)
    checksum = xxh3_128_hexdigest((tensors_digest(tensors) + text).encode())
    save_file(tensors, tmp_path / "x.safetensors", {"settings": text, "checksum": checksum})
    assert read_header(tmp_path / "x.safetensors").kind == kind
    assert load_tensors(tmp_path / "x.safetensors", kind)[1] == settings
    save_file(tensors, tmp_path / "x.safetensors", {"settings": text + " ", "checksum": checksum})
    with pytest.raises(UserError, match="damaged"):
        load_tensors(tmp_path / "x.safetensors", kind)


def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"file: No space left.*is kept"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_error_of_torch_about_a_full_disk(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="large"), whole_file(tmp_path / "file") as file:
            torch.save({"a": torch.zeros(100_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_killed_processes_are_removed_and_those_of_others_are_not(tmp_path: Path) -> None:
    (tmp_path / ".file.123.tmp").write_bytes(b"half")
    with whole_file(tmp_path / "file") as first:
        first.write(b"first")
        write_atomically(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_is_unknown_is_null(tmp_path: Path) -> None:
    """JSON has no word for it: other programs refuse a file with NaN."""
    write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": (math.nan, {"c": math.nan})})
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": [None, 1.5], "b": [None, {"c": None}]}
