"""``lightning-attr groups``, and what takes the file that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import Exclude, Field, Meta, Sample, Schema, Store, StoreWriter, kept_positions
from datamodules.grouping import read_groups
from lightning_attr.commands.groups import main
from lightning_attr.encoders.store import jpeg
from lightning_attr.errors import UserError


def picture(seed: int) -> np.ndarray:
    """A smooth image."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Five images; the last two are the second one, darker and cropped."""
    second = picture(1)
    cropped = np.asarray(Image.fromarray(second[1:-1, 1:-1]).resize((64, 64)))
    images = [picture(0), second, picture(2), (0.8 * second).astype(np.uint8), cropped]
    with StoreWriter(tmp_path / "train.lmdb", Schema({"latent": Field((1, 2), "float32", "latent")}, {})) as writer:
        for place, image in enumerate(images):
            meta = Meta(7 * place, ("a picture",), None, None, {"key": f"{place}.png"})
            writer.write(Sample(meta, {"latent": np.zeros((1, 2), np.float32)}, jpeg(image)))
        writer.finish()
    return Store(tmp_path / "train.lmdb")


def test_the_file_is_a_grouping(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "near.json"
    main([store.path, "--out", str(path)])
    printed = capfd.readouterr().out
    assert "3 of 5 images are near-duplicates, in 1 clusters" in printed
    for words in ("1.png", "3.png, 4.png", f"made: {path}"):
        assert words in printed
    groups = read_groups(store, str(path))
    assert (groups.names, groups.sizes.tolist()) == (("0.png", "1.png", "2.png"), [1, 3, 1])
    assert kept_positions(store, Exclude(grouping=str(path), group="1.png")).tolist() == [0, 2]
    before = path.read_bytes()
    main([store.path, "--out", str(path)])
    assert path.read_bytes() == before


def test_a_distance_of_none_finds_copies_alone(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main([store.path, "--out", str(tmp_path / "near.json"), "--distance", "0"])
    assert "0 of 5 images are near-duplicates, in 0 clusters" in capfd.readouterr().out
    assert read_groups(store, str(tmp_path / "near.json")).sizes.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--distance", "190"], "--distance: found 190, expected 0 to 189"),
        (["--out", "near.txt"], "--out: found near.txt, expected a file NAME.json"),
    ],
)
def test_mistakes(store: Store, tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        main([store.path, "--out", str(tmp_path / "near.json"), *options])
    assert words in str(refused.value)
    assert not (tmp_path / "near.json").exists()


def test_other_files_are_not_written_over(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"expected nothing or clusters"):
        main([store.path, "--out", str(path)])
    assert path.read_text() == "{}"


def test_a_store_without_thumbnails(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "bare.lmdb", Schema({"latent": Field((1, 2), "float32", "latent")}, {})) as writer:
        writer.write(Sample(Meta(0, ("a",), None, None, {}), {"latent": np.zeros((1, 2), np.float32)}, b""))
        writer.finish()
    with pytest.raises(UserError, match="found no picture in the thumb of sample 0"):
        main([str(tmp_path / "bare.lmdb"), "--out", str(tmp_path / "near.json")])
    assert not (tmp_path / "near.json").exists()
