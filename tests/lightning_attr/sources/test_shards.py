"""Parquet files and tars."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from image_sources import items, write_parquet, write_tar, write_tars

from lightning_attr.errors import UserError
from lightning_attr.sources.auto import open_source
from lightning_attr.sources.base import Faults, Record
from lightning_attr.sources.table import Columns


def records(path: object, columns: Columns | None = None, faults: Faults | None = None) -> list[Record]:
    faults = faults or Faults(skip=False)
    return list(open_source(str(path), None, None, columns or Columns(), faults).records(faults))


def table(path: Path, group: int = 100, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    """Forward within a row group, and back to its beginning."""
    data = [bytes([row]) * (row + 1) for row in range(100)]
    found = records(table(tmp_path / "x.parquet", 40, image=data, text=[str(row) for row in range(100)]))
    assert [record.key for record in found] == [f"x.parquet/{row:03}" for row in range(100)]
    for row in (*range(0, 100, 3), 99, 5, 4, 39, 40, 17, *np.random.default_rng(0).permutation(100)):
        assert found[row].place.read_bytes() == data[row]


def test_images_are_bytes_paths_or_structs_of_both(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"on the disk")
    both = [{"bytes": b"in the row", "path": "a.png"}, {"bytes": None, "path": "in/a.png"}, None]
    paths = [{"bytes": None, "path": "in/a.png"}] * 3
    text = ["x", "y", "z"]
    mixed = records(table(tmp_path / "mixed.parquet", image=pyarrow.array(both), text=text))
    assert (mixed[0].place.read_bytes(), mixed[0].source) == (b"in the row", "a.png")
    for place in (1, 2):
        with pytest.raises(FileNotFoundError, match="no image in it"):
            mixed[place].place.read_bytes()
    binary = pyarrow.array(paths, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    for image in (binary, ["in/a.png"] * 3, pyarrow.array(["in/a.png"] * 3, pyarrow.large_string())):
        (found, *_) = records(table(tmp_path / "paths.parquet", image=image, text=text))
        assert found.place.read_bytes() == b"on the disk"
    with pytest.raises(UserError, match=r"row 1: found the path '/etc/x', expected one within"):
        records(table(tmp_path / "out.parquet", image=["in/a.png", "/etc/x"], text=text[:2]))


def test_columns_of_parquet_are_named(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", pic=[b"1"], words=[["one", "two"]], artist=["me"], url=["http://x"])
    (record,) = records(path, Columns("words", "artist", "pic"))
    assert (record.captions, record.groups, record.source) == (("one", "two"), ("me",), "http://x")
    for columns, message in (
        (Columns("words"), "found columns 'pic', 'words', 'artist', 'url', expected 'image' as --image_column says"),
        (Columns("words", image="words"), "found words of type list<.*>, expected bytes, paths, or a struct of both"),
        (Columns(image="pic"), "expected one of text, caption, captions, prompt, or --caption_column"),
        (Columns("words", "nobody", "pic"), "expected 'nobody' as --group_column says"),
        (Columns("pic", image="pic"), "row 0: pic: found b'1', expected text"),
    ):
        with pytest.raises(UserError, match=message):
            records(path, columns)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for data in (b"", b"PAR1 no more", table(path, image=[b"1"], text=["x"]).read_bytes()[:-20]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.parquet: found no readable Parquet \(.*\)") as error:
            records(path)
        assert "\n" not in str(error.value)


def test_splits_are_not_mixed(tmp_path: Path) -> None:
    write_parquet(tmp_path, items())
    (tmp_path / "train-00001-of-00002.parquet").rename(tmp_path / "test-00001-of-00002.parquet")
    with pytest.raises(UserError, match=r"found splits test, train, expected one: a pattern such as 'train-\*'"):
        records(tmp_path)
    assert len(records(tmp_path / "train-*.parquet")) == 4


def test_pyarrow_is_asked_for_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path, items())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'lightning-attr\[sources\]'"):
        records(tmp_path)


def test_members_of_a_sample_have_one_name(tmp_path: Path) -> None:
    said = b'{"caption": "of the JSON", "url": "http://x", "style": "oil", "LICENSE": "CC0"}'
    members = {"b/2.JPG": b"two", "b/2.json": said, "b/2.npy": b"", "1.png": b"one", "1.txt": b" of the\ntext ",
               "1.json": said, "readme": b"", "3.seg.png": b"no image of it"}  # fmt: skip
    write_tar(tmp_path / "x.tar", members)
    first, second = records(tmp_path, Columns(group="style"))
    assert (first.key, first.captions, first.place.read_bytes()) == ("x.tar/1", ("of the text",), b"one")
    assert (second.key, second.captions, second.place.read_bytes()) == ("x.tar/b/2", ("of the JSON",), b"two")
    assert (second.groups, second.source, second.licence) == (("oil",), "http://x", "CC0")


def test_tars_as_webdataset_writes_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=2, verbose=0) as writer:
        for place, item in enumerate(items(3)):
            writer.write({"__key__": f"{place:09}", "png": item.data, "json": {"caption": item.caption}})
    found = records(tmp_path)
    assert [record.key for record in found] == [f"{place // 2:05}.tar/{place:09}" for place in range(3)]
    assert [record.place.read_bytes() for record in found] == [item.data for item in items(3)]
    assert [record.captions for record in found] == [(item.caption,) for item in items(3)]


def test_two_images_of_one_name_are_a_fault(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"1.png": b"one", "1.jpg": b"other", "1.txt": b"x"})
    with pytest.raises(UserError, match=r"found a second image of key 'x\.tar/1'"):
        records(tmp_path)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for data in (b"one", b"two"):
            info = tarfile.TarInfo("1.png")
            info.size = 3
            tar.addfile(info, io.BytesIO(data))
    faults = Faults(skip=True)
    (found,) = records(tmp_path, faults=faults)
    assert found.place.read_bytes() == b"one"
    assert faults.counts == {"skipped: key of another image": 1}


@pytest.mark.parametrize("cut", [-10_240 - 512, 3 * 512 + 100, 2 * 512 + 10, 2 * 512])
def test_a_tar_that_is_cut_is_a_fault(tmp_path: Path, cut: int) -> None:
    """In the last file, in a file, in a header, between two members."""
    write_tar(tmp_path / "x.tar", {f"{place}.png": bytes(400) for place in range(10)})
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[:cut])
    with pytest.raises(UserError, match=r"x\.tar: found damage after \d+ members \(.*\) \(see --on_error\)"):
        records(tmp_path)
    faults = Faults(skip=True)
    assert 0 < len(records(tmp_path, faults=faults)) < 11
    assert faults.counts == {"skipped: rest of a damaged shard": 1}


def test_a_tar_with_a_damaged_header_is_a_fault(tmp_path: Path) -> None:
    """Which the library takes for the end."""
    write_tar(tmp_path / "x.tar", {f"{place}.png": bytes(400) for place in range(10)})
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[4 * 1024] ^= 1
    (tmp_path / "x.tar").write_bytes(bytes(data))
    with pytest.raises(UserError, match="found damage after 4 members"):
        records(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no tar" * 1000])
def test_what_is_no_tar_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.tar: found no "):
        records(tmp_path)


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(UserError, match="expected a tar that is not compressed"):
        records(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("1.json", b"[]", r"x\.tar: 1\.json: found \[\], expected an object"),
        ("1.json", b"{", "found no JSON"),
        ("1.json", b"[" * 100_000, "found no JSON"),
        ("1.json", b'{"caption": 3}', "caption: found 3, expected text"),
        ("1.txt", b"\xff", "found no UTF-8"),
        ("1.txt", b" " * 2_000_000, "found 2,000,000 bytes, expected at most 1,048,576"),
    ],
)
def test_members_that_say_nothing_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write_tar(tmp_path / "x.tar", {"1.png": b"", name: data})
    with pytest.raises(UserError, match=message):
        records(tmp_path)


def test_what_a_folder_is_must_be_clear(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no files, expected one kind of coco, folder, metadata, parquet, webd"):
        records(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"found files of endings '\.zip', expected one kind"):
        records(tmp_path)
    write_tars(tmp_path, items())
    write_parquet(tmp_path, items())  # as img2dataset leaves beside its tars
    assert len(records(tmp_path)) == 6
    (tmp_path / "loose.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"found webdataset and folder, expected one kind of .* \(see --kind\)"):
        records(tmp_path)
    with pytest.raises(UserError, match="nowhere: found no such file or folder"):
        records(tmp_path / "nowhere")
