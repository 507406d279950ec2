"""``prepare images``: what holds for every kind of source."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from image_sources import LAYOUTS, Item, encoded, items, picture, write_folder
from PIL import Image

from datamodules.store import Store
from lightning_attr.commands.inspect import main as inspect
from lightning_attr.commands.prepare.any_source import main
from lightning_attr.commands.prepare.encode import Recipe
from lightning_attr.errors import UserError

layouts = pytest.mark.parametrize("layout", LAYOUTS)


def prepare(source: Path, out: Path, *more: str) -> str:
    """Run in this process; the digest of the store."""
    main([str(source), "--out", str(out), "--size", "16", "--batch_size", "2", "--workers", "0", *more])
    with Store(out) as store:
        return str(store.digest)


def laid_out(folder: Path, layout: str, content: Sequence[Item]) -> Path:
    LAYOUTS[layout](folder, content)
    return folder


KEYS = {
    "folder": [f"{place:03}.png" for place in range(6)],
    "metadata jsonl": [f"{place:03}.png" for place in range(6)],
    "metadata csv": [f"{place:03}.png" for place in range(6)],
    "parquet": [f"train-00000-of-00002.parquet/{row}" for row in range(4)]
    + [f"train-00001-of-00002.parquet/{row}" for row in range(2)],
    "webdataset": [f"00000.tar/{place:03}" for place in range(4)] + [f"00001.tar/{place:03}" for place in (4, 5)],
}


@layouts
def test_all_kinds_give_the_same_samples_by_their_own_keys(tmp_path: Path, layout: str) -> None:
    """Ids are positions of sorted keys; pixels are those of the file's centre square."""
    content = items()
    prepare(laid_out(tmp_path / "it", layout, content), tmp_path / "it.lmdb")
    prepare(laid_out(tmp_path / "plain", "folder", content), tmp_path / "plain.lmdb")
    with Store(tmp_path / "it.lmdb") as store, Store(tmp_path / "plain.lmdb") as plain:
        metas = [store.meta(place) for place in range(len(store))]
        assert [meta.key for meta in metas] == KEYS[layout]
        assert [meta.id for meta in metas] == list(range(6))
        assert [meta.captions for meta in metas] == [(item.caption,) for item in content]
        assert store.made_from["source"] == layout.split()[0]
        assert store.schema.fields["text"].shape[0] == store.schema.fields["latent"].shape[0] == 1
        for name in ("latent", "text"):
            np.testing.assert_array_equal(store.read(name, range(6)), plain.read(name, range(6)))
        thumb = Image.open(io.BytesIO(store.thumb(3)))
    expected = picture(3).crop((2, 0, 22, 20))
    assert np.abs(np.asarray(thumb, float) - np.asarray(expected, float)).mean() < 6  # a round of JPEG


@layouts
def test_a_run_that_ended_goes_on_and_gives_the_same_store(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = laid_out(tmp_path / "it", layout, items())
    expected = prepare(source, tmp_path / "whole.lmdb")
    calls: list[int] = []
    arrays = Recipe.arrays

    def killed(self: Recipe, *given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise UserError("killed here")
        return arrays(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as context:
        context.setattr(Recipe, "arrays", killed)
        with pytest.raises(UserError, match="killed here"):
            prepare(source, tmp_path / "killed.lmdb")
    capsys.readouterr()
    assert prepare(source, tmp_path / "killed.lmdb") == expected
    assert "already there  4" in capsys.readouterr().out
    prepare(source, tmp_path / "killed.lmdb")
    assert "nothing to do" in capsys.readouterr().out


@layouts
@pytest.mark.parametrize("change", ["pixels", "caption", "image"])
def test_a_finished_store_of_other_images_is_refused(tmp_path: Path, layout: str, change: str) -> None:
    content = items()
    source = laid_out(tmp_path / "it", layout, content)
    prepare(source, tmp_path / "it.lmdb")
    before = (tmp_path / "it.lmdb").read_bytes()
    match change:
        case "pixels":
            content[3].data, message = encoded(picture(99)), "image 3 made from other bytes"
        case "caption":
            content[3].caption, message = "another", "image 3: found captions.0 'a caption of image 3', expected"
        case _:
            content += [Item("999.png", encoded(picture(7)), "one more")]
            message = "6 samples without image 6, expected 7 images"
    laid_out(tmp_path / "it", layout, content)
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "it.lmdb")
    assert (tmp_path / "it.lmdb").read_bytes() == before


@layouts
def test_what_cannot_be_stored_ends_the_run_or_is_counted(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = items()
    content[1].data = b"no image"
    content[2].caption = "  "
    content[4].data = content[4].data[:200]
    source = laid_out(tmp_path / "it", layout, content)
    with pytest.raises(UserError, match=r"image 2 \(.*\) has no caption \(see --on_error\)"):
        prepare(source, tmp_path / "it.lmdb")
    content[2].caption = "said"
    laid_out(source, layout, content)
    with pytest.raises(UserError, match=r"no image of a known kind \(see --on_error\)"):
        prepare(source, tmp_path / "it.lmdb")
    content[2].caption = ""
    laid_out(source, layout, content)
    prepare(source, tmp_path / "skip.lmdb", "--on_error", "skip")
    rows = dict(line.strip().rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[:2] == "  ")
    assert (rows["samples"], rows["skipped: unreadable"], rows["skipped: no caption"]) == ("3", "2", "1")
    with Store(tmp_path / "skip.lmdb") as store:
        assert list(store.ids) == [0, 3, 5]  # positions of all keys


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_decoding_processes_open_shards_themselves(tmp_path: Path, layout: str) -> None:
    source = laid_out(tmp_path / "it", layout, items())
    expected = prepare(source, tmp_path / "one.lmdb")
    assert prepare(source, tmp_path / "two.lmdb", "--workers", "2") == expected


def test_a_damaged_page_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no missing file, and neither are the rows behind it, which cannot be reached any more."""
    path = tmp_path / "it.parquet"
    content = items(8)
    columns = {"image": [item.data for item in content], "text": [item.caption for item in content]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=4, compression="snappy")
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    data[begin + 40 : begin + 200] = b"\xff" * 160
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"row 0 of row group 1: damaged file \(.*\) \(see --on_error\)"):
        prepare(path, tmp_path / "it.lmdb")
    (tmp_path / "it.lmdb.partial").unlink(missing_ok=True)
    capsys.readouterr()
    prepare(path, tmp_path / "skip.lmdb", "--on_error", "skip")
    assert "skipped: damaged file  4" in capsys.readouterr().out


def turned(kind: str) -> bytes:
    """An image whose EXIF orientation says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(1, 30, 20), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_unless_told_otherwise(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "it", [Item(f"1.{kind.lower()}", turned(kind), "turned")])
    prepare(tmp_path / "it", tmp_path / "it.lmdb")
    assert "turned as EXIF orientation says  1" in capsys.readouterr().out
    with Store(tmp_path / "it.lmdb") as store:
        thumb = np.asarray(Image.open(io.BytesIO(store.thumb(0))), float)
    expected = picture(1, 30, 20).transpose(Image.Transpose.ROTATE_270).crop((0, 5, 20, 25))
    assert np.abs(thumb - np.asarray(expected, float)).mean() < 8
    with pytest.raises(UserError, match="found turned True, expected False"):
        prepare(tmp_path / "it", tmp_path / "it.lmdb", "--exif_orientation", "false")
    if kind != "TIFF":  # which Pillow turns itself
        prepare(tmp_path / "it", tmp_path / "other.lmdb", "--exif_orientation", "false")
        assert "kept as stored in spite of EXIF orientation  1" in capsys.readouterr().out


def test_kohya_folders_are_weights_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image without a text has the words of its folder for a caption."""
    content = items(3)
    for item, folder in zip(content, ("10_sks cat", "10_sks cat", "2_other"), strict=True):
        item.name = f"{folder}/{item.name}"
    write_folder(tmp_path / "it", content)
    (tmp_path / "it" / "10_sks cat" / "001.txt").unlink()
    prepare(tmp_path / "it", tmp_path / "it.lmdb")
    printed = capsys.readouterr().out
    assert "images of weight 10  2" in printed
    with Store(tmp_path / "it.lmdb") as store:
        metas, weights = [store.meta(place) for place in range(3)], store.weights.tolist()
    assert [meta.captions[0] for meta in metas] == ["a caption of image 0", "sks cat", "a caption of image 2"]
    assert weights == [10, 10, 2]
    assert [meta.attributes["groups"] for meta in metas] == [["10_sks cat"], ["10_sks cat"], ["2_other"]]
    inspect([str(tmp_path / "it.lmdb")])
    printed = capsys.readouterr().out
    for row in ("key      10_sks cat/000.png", "groups   ['10_sks cat']", "weight   10"):
        assert row in printed


def test_one_prompt_for_all(tmp_path: Path) -> None:
    write_folder(tmp_path / "it", items(2))
    prepare(tmp_path / "it", tmp_path / "it.lmdb", "--prompt", "a photo of sks dog")
    with Store(tmp_path / "it.lmdb") as store:
        assert [store.meta(place).captions for place in range(2)] == [("a photo of sks dog",)] * 2
    with pytest.raises(UserError, match=r"image 0: found captions\.0 'a photo of sks dog', expected 'another'"):
        prepare(tmp_path / "it", tmp_path / "it.lmdb", "--prompt", "another")


def test_limit_takes_the_first_by_key(tmp_path: Path) -> None:
    write_folder(tmp_path / "it", items())
    prepare(tmp_path / "it", tmp_path / "it.lmdb", "--limit", "2", "--flips", "true", "--captions_per_image", "3")
    with Store(tmp_path / "it.lmdb") as store:
        assert [store.meta(place).key for place in range(len(store))] == ["000.png", "001.png"]
        assert store.schema.fields["latent"].shape[0] == 2
        assert store.schema.fields["text"].shape[0] == 3


def test_coco_is_the_same_store_as_of_its_own_command(tmp_path: Path) -> None:
    from lightning_attr.commands.prepare.coco import main as prepare_coco

    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    images = [{"id": 7 * place + 1, "file_name": item.name} for place, item in enumerate(items(3))]
    for item in items(3):
        (tmp_path / "train" / item.name).write_bytes(item.data)
    said = [{"id": image["id"], "image_id": image["id"], "caption": f"of {image['id']}"} for image in images]
    captions = tmp_path / "annotations" / "captions_train.json"
    captions.write_text(json.dumps({"images": images, "annotations": said}))
    digest = prepare(captions, tmp_path / "one.lmdb")
    arguments = ["--images", str(tmp_path / "train"), "--captions", str(captions), "--out", str(tmp_path / "two.lmdb")]
    prepare_coco([*arguments, "--size", "16", "--workers", "0", "--flips", "false", "--captions_per_image", "1"])
    with Store(tmp_path / "two.lmdb") as store:
        assert store.digest == digest
        assert list(store.ids) == [1, 8, 15]
        assert store.meta(0).key == "000.png"
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"found no folder .*train of its images; name it: prepare coco"):
        prepare(captions, tmp_path / "three.lmdb")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--crop", "none"), "--crop: found 'none', expected centre: images of a store have one shape"),
        (("--limit", "0"), "--limit: found 0, expected at least 1"),
        (("--image_column", "x"), "--image_column: found 'x', expected none for a source of kind folder"),
        (("--kind", "metadata", "--prompt", "x"), "--prompt: found 'x' for a source of kind metadata"),
        (("--kind", "metadata"), "found none of metadata.jsonl, metadata.csv"),
        (("--kind", "parquet"), "found no .parquet files"),
        (("--kind", "webdataset"), "found no .tar files"),
        (("--kind", "coco"), "found 0 captions files"),
        (("--kind", "zip"), "kind"),
        (("--model", "nowhere"), "--model nowhere: found no model_index.json"),
        (("--model", "nowhere", "--text_encoder", "HashedWords"), "--model: found --text_encoder as well"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    write_folder(tmp_path / "it", items(1))
    with pytest.raises(UserError, match=message) as error:
        prepare(tmp_path / "it", tmp_path / "it.lmdb", *more)
    assert "\n" not in str(error.value)
