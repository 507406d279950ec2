"""Files of checkpoints: no bit of one changes without a word, and a model is known by what it is."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_attr.artifacts.checkpoint_files import (
    DIGESTS,
    content_digest,
    model_digest,
    read_checkpoint,
    with_digests,
)
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError


def contents(**changed: Any) -> dict[str, Any]:
    weights = {f"denoiser.{name}": torch.arange(12.0).reshape(3, 4) + place for place, name in enumerate("abcdef")}
    model = {"denoiser": {"sample_size": [4, None]}, "scheduler": {}, "null_text": torch.ones(2, 3)}
    moments = {"exp_avg": torch.randn(3, 4), "step": torch.tensor(3.0), "low": torch.ones(2, dtype=torch.bfloat16)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]}
    return {
        "epoch": 3, "state_dict": weights, "trained_model": model, "optimizer_states": [optimizer], "none": None,
        "empty": torch.ones(0, 2), **changed,
    }  # fmt: skip


def written(path: Path, checkpoint: dict[str, Any]) -> Path:
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("checkpoint") / "last.ckpt", with_digests(contents()))


@pytest.mark.parametrize("digests", [True, False], ids=["with digests", "written before there were digests"])
def test_flips_are_refused_or_harmless(path: Path, tmp_path: Path, digests: bool) -> None:
    """Also in the ZIP directory, where one bit makes torch read memory as it was."""
    plain = {key: value for key, value in read_checkpoint(path).items() if digests or key != DIGESTS}
    data = written(tmp_path / "whole.ckpt", plain).read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        headers = [record.header_offset for record in archive.infolist()]
        directory = archive.start_dir
    dice, flipped, harmless, messages = random.Random(0), tmp_path / "flipped.ckpt", 0, []
    places = [dice.randrange(directory, len(data)) for _ in range(200)]
    places += [start + dice.randrange(80) for start in headers] + [dice.randrange(len(data)) for _ in range(100)]
    for place in places:
        bits = bytearray(data)
        bits[place] ^= 1 << dice.randrange(8)
        flipped.write_bytes(bits)
        try:
            assert content_digest(read_checkpoint(flipped)) == content_digest(plain), place
            harmless += 1
        except UserError as error:
            messages.append(str(error))
    assert min(harmless, len(messages)) > 50
    for message in messages:
        assert message.startswith(f"checkpoint {flipped}: refused, ")
        assert "\n" not in message
        assert "weights_only" not in message  # torch's advice is to trust the file


def test_every_record_of_a_directory_is_read(path: Path, tmp_path: Path) -> None:
    """The bit that marks a folder, in each record of the ZIP directory."""
    data = path.read_bytes()
    entry, count = data.find(b"PK\x01\x02"), 0
    while entry >= 0:
        bits = bytearray(data)
        bits[entry + 38] ^= 0x10
        (tmp_path / "flipped.ckpt").write_bytes(bits)
        with pytest.raises(UserError, match="is no file"):
            read_checkpoint(tmp_path / "flipped.ckpt")
        entry, count = data.find(b"PK\x01\x02", entry + 1), count + 1
    assert count > 10


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("extra", [b"\0", b"more", b"PK\x05\x06" + b"\0" * 18])
def test_bytes_before_and_after_are_refused(tmp_path: Path, extra: bytes, digests: bool) -> None:
    checkpoint = with_digests(contents()) if digests else contents()
    data, path = written(tmp_path / "whole.ckpt", checkpoint).read_bytes(), tmp_path / "longer.ckpt"
    for longer in (data + extra, extra + data, data + data):
        path.write_bytes(longer)
        with pytest.raises(UserError, match=r"longer\.ckpt: refused"):
            read_checkpoint(path)


def test_every_value_is_covered(tmp_path: Path) -> None:
    """Something else with the digests of another, as one would get by an edit in between."""
    digests = with_digests(contents())[DIGESTS]
    for changed in (
        {"epoch": 4}, {"epoch": 3.0}, {"epoch": "3"}, {"epoch": None}, {"none": False}, {"more": 0},
        {"empty": torch.ones(0, 3)}, {"empty": torch.ones(0, 2, dtype=torch.float64)}, {"state_dict": {}},
    ):  # fmt: skip
        path = written(tmp_path / "other.ckpt", contents(**changed) | {DIGESTS: digests})
        with pytest.raises(UserError, match="its digest does not match its contents"):
            read_checkpoint(path)


def test_a_model_is_known_by_its_contents(tmp_path: Path) -> None:
    """Not by its training's progress, nor by the order of entries or the layout in memory."""
    first = contents()
    weights = {name: value.t().contiguous().t() for name, value in reversed(first["state_dict"].items())}
    second = contents(epoch=5, loops={"progress": 7}, state_dict=weights)
    paths = [written(tmp_path / f"{name}.ckpt", with_digests(each)) for name, each in (("a", first), ("b", second))]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    assert file_digest(paths[0]) == file_digest(paths[1]) == model_digest(paths[0])
    weights["denoiser.a"] = weights["denoiser.a"] + 1
    assert file_digest(written(tmp_path / "c.ckpt", with_digests(second))) != file_digest(paths[0])
    null = contents(trained_model={**first["trained_model"], "null_text": torch.zeros(2, 3)})
    assert file_digest(written(tmp_path / "d.ckpt", with_digests(null))) != file_digest(paths[0])


def test_a_file_that_is_replaced_or_written_over_has_the_digest_of_what_is_there(tmp_path: Path) -> None:
    path, first = tmp_path / "last.ckpt", contents()
    before = file_digest(written(path, with_digests(first)))
    weights = {name: value + 1 for name, value in first["state_dict"].items()}
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other/last.ckpt", with_digests(contents(state_dict=weights)))  # the name is in the file
    assert path.stat().st_size == other.stat().st_size
    content = path.read_bytes()
    other.replace(path)
    after = file_digest(path)
    assert after != before
    path.write_bytes(content)  # the same inode and size
    assert file_digest(path) == before
    path.unlink()
    assert model_digest(path) is None


def test_checkpoints_without_digests_are_known_by_their_bytes(tmp_path: Path) -> None:
    first, second = (written(tmp_path / f"{epoch}.ckpt", contents(epoch=epoch)) for epoch in (1, 2))
    assert read_checkpoint(first)["epoch"] == 1
    assert model_digest(first) is None
    assert file_digest(first) != file_digest(second)
    copy = tmp_path / "copy.bin"
    copy.write_bytes(first.read_bytes())
    assert file_digest(copy) == file_digest(first)
    for name, data in {"text": b"trainer: {}", "empty": b"", "short": b"PK\x05\x06"}.items():
        (tmp_path / f"{name}.ckpt").write_bytes(data)  # what is no checkpoint has a digest as well
        assert len(file_digest(tmp_path / f"{name}.ckpt")) == 32
        with pytest.raises(UserError, match=rf"{name}\.ckpt: refused, it is damaged or not a checkpoint"):
            read_checkpoint(tmp_path / f"{name}.ckpt")
