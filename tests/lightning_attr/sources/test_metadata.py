"""Folders with ``metadata.jsonl`` or ``metadata.csv``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_attr.errors import UserError
from lightning_attr.sources.auto import open_source
from lightning_attr.sources.base import Faults, Record
from lightning_attr.sources.table import Columns


def records(folder: Path, columns: Columns | None = None, faults: Faults | None = None) -> list[Record]:
    faults = faults or Faults(skip=False)
    return list(open_source(str(folder), None, None, columns or Columns(), faults).records(faults))


def lines(folder: Path, *rows: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_captions_groups_and_credits_are_columns(tmp_path: Path) -> None:
    row = {"file_name": "1.png", "caption": ["one ", "", "two"], "style": ["x", 3], "license": "CC0", "url": "http://a"}
    (record,) = records(lines(tmp_path, row), Columns(group="style"))
    assert (record.captions, record.groups) == (("one", "two"), ("x", "3"))
    assert (record.licence, record.source) == ("CC0", "http://a")
    (record,) = records(lines(tmp_path, {"f": "1.png", "said": "so"}), Columns("said", image="f"))
    assert (record.key, record.captions) == ("1.png", ("so",))


def test_tables_in_folders_name_what_lies_beside_them(tmp_path: Path) -> None:
    lines(tmp_path, {"file_name": "a.png", "text": "one"})
    lines(tmp_path / "in", {"file_name": "./b.png", "text": "two"})
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "in" / "b.png").write_bytes(b"2")
    found = records(tmp_path)
    assert [(record.key, record.place.read_bytes()) for record in found] == [("a.png", b"1"), ("in/b.png", b"2")]


def test_an_image_that_no_table_names_has_no_caption(tmp_path: Path) -> None:
    lines(tmp_path, {"file_name": "a.png", "text": "one"})
    (tmp_path / "b.png").write_bytes(b"")
    assert [(record.key, record.captions) for record in records(tmp_path)] == [("a.png", ("one",)), ("b.png", ())]


def test_an_image_that_two_rows_name_is_a_fault(tmp_path: Path) -> None:
    lines(tmp_path, {"file_name": "a.png", "text": "one"}, {"file_name": "./a.png", "text": "two"})
    with pytest.raises(UserError, match=r"found a second image of key 'a\.png'"):
        records(tmp_path)
    faults = Faults(skip=True)
    assert [record.captions for record in records(tmp_path, faults=faults)] == [("one",)]
    assert faults.counts == {"skipped: key of another image": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "../a.png", "text": "x"}', r"line 1: found the path '\.\./a\.png', expected one within"),
        ('{"file_name": "b/../../a.png", "text": "x"}', "line 1: found the path"),
        ('{"file_name": "..\\\\a.png", "text": "x"}', "line 1: found the path"),
        ('{"file_name": "/etc/a.png", "text": "x"}', "line 1: found the path '/etc/a.png'"),
        ('{"file_name": "", "text": "x"}', "line 1: found the path ''"),
        ('{"file_name": "a\\u0000.png", "text": "x"}', "line 1: found the path"),
        ('{"file_name": "\\ud800.png", "text": "x"}', "found the name '.*', expected one in Unicode"),
        ('{"file_name": 3, "text": "x"}', "line 1: found file_name 3, expected the path of an image"),
        ('{"file_name": "a.png", "text": 3}', "line 1: text: found 3, expected text"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "line 1: text: found a lone surrogate"),
        ('{"file_name": "a.png", "text": {"a": 1}}', "line 1: text: found {'a': 1}, expected text"),
        ('{"file_name": "a.png", "words": "x"}', "line 1: found columns 'file_name', 'words', expected one of text"),
        ('{"text": "x"}', "line 1: found columns 'text', expected 'file_name' as --image_column says"),
        ("[]", r"line 1: found \[\], expected an object"),
        ("\n{", "found something else .*, expected a JSON object in each line"),
        ("[" * 100_000, "found something else"),
    ],
)
def test_rows_that_are_none_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        records(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file_name,text\na.png\n", "line 2: found more or fewer cells than in line 1"),
        (b"file_name,text\na.png,x,y\n", "line 2: found more or fewer cells"),
        (b'file_name,text\na.png,"x\n', "found something else .*, expected CSV"),
        (b"file_name,text\na.png,caf\xe9\n", "found something else .*, expected CSV"),
        (b"name,text\na.png,x\n", "found columns 'name', 'text', expected 'file_name'"),
    ],
)
def test_csv_that_is_none_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "metadata.csv").write_bytes(text)
    with pytest.raises(UserError, match=message):
        records(tmp_path)


def test_quoted_csv(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,text,style\na.png,"a cat, red\nand ""big""",x\n')
    (record,) = records(tmp_path, Columns(group="style"))
    assert (record.captions, record.groups) == (('a cat, red and "big"',), ("x",))
