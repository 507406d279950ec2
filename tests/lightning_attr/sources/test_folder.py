"""Folders of images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_sources import Item, items, write_folder

from lightning_attr.errors import UserError
from lightning_attr.sources.auto import open_source
from lightning_attr.sources.base import Faults, Record
from lightning_attr.sources.table import Columns


def records(path: Path, faults: Faults | None = None) -> list[Record]:
    faults = faults or Faults(skip=False)
    return list(open_source(str(path), "folder", None, Columns(), faults).records(faults))


def named(*names: str) -> list[Item]:
    return [Item(name, b"", f"of {name}") for name in names]


def test_keys_are_paths_in_their_order_and_groups_are_folders(tmp_path: Path) -> None:
    write_folder(tmp_path, named("b.PNG", "a/d/2.jpg", "a/1.webp", "a-1.jpeg"))
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "a" / "._1.webp").write_bytes(b"of a Mac")
    found = records(tmp_path)
    assert [record.key for record in found] == ["a-1.jpeg", "a/1.webp", "a/d/2.jpg", "b.PNG"]
    assert [record.id for record in found] == [0, 1, 2, 3]
    assert [record.groups for record in found] == [(), ("a",), ("a", "a/d"), ()]
    assert [record.captions for record in found] == [(f"of {record.key}",) for record in found]
    assert {record.weight for record in found} == {1}


def test_each_line_of_a_text_is_a_caption(tmp_path: Path) -> None:
    write_folder(tmp_path, named("a.png", "b.png", "c.png"))
    (tmp_path / "a.txt").write_bytes("\ufefffirst  words\r\n\r\n second ".encode())
    (tmp_path / "b.txt").write_text("\n \n")
    (tmp_path / "c.txt").unlink()
    assert [record.captions for record in records(tmp_path)] == [("first words", "second"), (), ()]
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"c\.txt: found no UTF-8"):
        records(tmp_path)


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["10_a cat/1.png", "2_b/1.png"], [10, 2]),
        (["10_a/1.png", "2_b/1.png", "c.png"], [1, 1, 1]),  # not all are in such folders
        (["2024_summer/1.png"], [1]),  # a year
        (["10_a/sub/1.png"], [1]),
        (["0_a/1.png"], [1]),
    ],
)
def test_numbers_of_folders_are_weights_where_all_images_are_in_such(
    tmp_path: Path, names: list[str], weights: list[int]
) -> None:
    write_folder(tmp_path, named(*names))
    assert [record.weight for record in records(tmp_path)] == weights


def test_a_link_to_a_folder_above_has_an_end(tmp_path: Path) -> None:
    write_folder(tmp_path / "it", named("a/1.png", "b/2.png"))
    write_folder(tmp_path / "elsewhere", named("3.png"))
    (tmp_path / "it" / "a" / "up").symlink_to(tmp_path / "it")
    (tmp_path / "it" / "self").symlink_to(tmp_path / "it" / "self")
    (tmp_path / "it" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [record.key for record in records(tmp_path / "it")] == ["a/1.png", "b/2.png", "linked/3.png"]
    (tmp_path / "it" / "self.png").symlink_to(tmp_path / "it" / "self.png")
    assert records(tmp_path / "it")[-1].key == "self.png"


def test_a_link_that_leads_nowhere_is_an_image_that_is_missing(tmp_path: Path) -> None:
    write_folder(tmp_path, named("1.png"))
    (tmp_path / "2.png").symlink_to(tmp_path / "nowhere.png")
    assert [record.key for record in records(tmp_path)] == ["1.png", "2.png"]


def test_the_form_of_accents_makes_no_key(tmp_path: Path) -> None:
    """One name in the forms of Linux and macOS is one key; both in a folder are two images of one key."""
    write_folder(tmp_path / "one", named("caf\N{LATIN SMALL LETTER E WITH ACUTE}.png"))
    write_folder(tmp_path / "two", named("cafe\N{COMBINING ACUTE ACCENT}.png"))
    assert records(tmp_path / "one")[0].key == records(tmp_path / "two")[0].key
    write_folder(tmp_path / "two", named("caf\N{LATIN SMALL LETTER E WITH ACUTE}.png", "other.png"))
    with pytest.raises(UserError, match=r"found a second image of key 'café\.png' \(see --on_error\)"):
        records(tmp_path / "two")
    faults = Faults(skip=True)
    assert [record.id for record in records(tmp_path / "two", faults)] == [0, 1]
    assert faults.counts == {"skipped: key of another image": 1}


def test_a_name_that_is_no_text_is_a_fault(tmp_path: Path) -> None:
    write_folder(tmp_path, named("1.png"))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"found the name 'caf\\udce9\.png', expected one in Unicode"):
        records(tmp_path)
    faults = Faults(skip=True)
    assert [record.key for record in records(tmp_path, faults)] == ["1.png"]
    assert faults.counts == {"skipped: name without Unicode": 1}


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no images"):
        records(tmp_path)


def test_images_without_any_text_need_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"found no texts, expected captions such as 1\.txt beside 1\.png, or --prompt"):
        records(tmp_path)


def test_captions_are_read_when_they_are_needed(tmp_path: Path) -> None:
    """So that a few images of a large folder take no longer than they must."""
    write_folder(tmp_path, items(3))
    faults = Faults(skip=False)
    found = open_source(str(tmp_path), None, None, Columns(), faults).records(faults)
    assert next(found).captions == ("a caption of image 0",)
    (tmp_path / "001.txt").write_text("changed since")
    assert next(found).captions == ("changed since",)
