"""Artefacts: whole, checked, and without code in them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_attr.artifacts import load_tensors, save_tensors, tensors_digest, write_atomically
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def test_round_trip(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {**TENSORS, "c": torch.eye(3)[:, 1:]}, {"k": [1, "two"]})
    tensors, settings = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert torch.equal(tensors["c"], torch.eye(3)[:, 1:])
    assert settings == {"k": [1, "two"]}


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"k": 1})
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
    save_tensors(path, TENSORS, {})
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
