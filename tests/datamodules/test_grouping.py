"""What samples belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import Exclude, Field, Meta, Sample, Schema, Store, StoreWriter, kept_positions
from datamodules.grouping import NONE, Clusters, read_groups
from lightning_attr.artifacts import read_json, write_json
from lightning_attr.errors import UserError


def write(path: Path, attributes: list[dict[str, Any]]) -> Store:
    """A store of samples 0, 10, 20, ... with these attributes."""
    with StoreWriter(path, Schema({"latent": Field((1, 2), "float32", "latent")}, {})) as writer:
        for place, each in enumerate(attributes):
            meta = Meta(10 * place, (f"caption {place}",), None, None, each)
            writer.write(Sample(meta, {"latent": np.full((1, 2), place, np.float32)}, b""))
        writer.finish()
    return Store(path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write(
        tmp_path / "store.lmdb",
        [
            {"key": "a/b/x.png", "groups": ["a", "a/b"], "artist": "velin"},
            {"key": "a/y.png", "groups": ["a"], "artist": "moro"},
            {"key": "z.png", "artist": "velin", "planted": True},
            {"key": "w.png", "planted": False, "artist": ""},
        ],
    )


def as_dict(store: Store, grouping: str) -> dict[str, list[int]]:
    groups = read_groups(store, grouping)
    assert list(groups.names) == sorted(groups.names)
    assert groups.sizes.tolist() == [len(groups.members(name)) for name in groups.names]
    return {name: groups.members(name).tolist() for name in groups.names}


def test_an_attribute_groups_and_what_has_it_not_is_a_group(store: Store) -> None:
    assert as_dict(store, "artist") == {NONE: [3], "moro": [1], "velin": [0, 2]}
    assert as_dict(store, "groups") == {NONE: [2, 3], "a": [0, 1], "a/b": [0]}  # nested folders
    assert as_dict(store, "planted") == {NONE: [0, 1], "false": [3], "true": [2]}


def test_groups_of_some_samples_are_places_among_them(store: Store) -> None:
    groups = read_groups(store, "artist", [20, 10])
    assert groups.names == ("moro", "velin")
    assert groups.members("velin").tolist() == [0]
    assert groups.members("moro").tolist() == [1]


def test_clusters_are_named_by_their_first_image(store: Store, tmp_path: Path) -> None:
    Clusters(store.digest, ((10, 30),), {"distance": 3}).save(tmp_path / "clusters.json")
    assert as_dict(store, str(tmp_path / "clusters.json")) == {"a/b/x.png": [0], "a/y.png": [1, 3], "z.png": [2]}


def test_images_of_one_key_have_different_names(tmp_path: Path) -> None:
    store = write(tmp_path / "store.lmdb", [{"key": "x"}, {"key": "x"}, {}])
    Clusters(store.digest, (), {}).save(tmp_path / "c.json")
    assert as_dict(store, str(tmp_path / "c.json")) == {"x image 0": [0], "x image 10": [1], "image 20": [2]}


def test_without_a_group(store: Store) -> None:
    assert kept_positions(store, Exclude(grouping="artist", group="velin")).tolist() == [1, 3]
    assert kept_positions(store, Exclude(grouping="artist", group=["velin", NONE])).tolist() == [1]
    assert kept_positions(store, Exclude(grouping="groups", group="a")).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grouping": "artist", "group": "vellin"}, "group: found 'vellin', expected one of artist: (none), moro"),
        ({"grouping": "artits", "group": "x"}, "with the attribute 'artits', expected"),
        ({"grouping": "artist"}, "exclude: found grouping artist and group None, expected both or neither"),
        ({"group": "velin"}, "expected both or neither"),
        ({"grouping": "artist", "group": []}, "exclude.group: found none"),
        ({"grouping": "artist", "group": "velin", "random": 2}, "exactly one of ids, scores, random, group"),
        ({"grouping": "missing.json", "group": "velin"}, "missing.json: no such file"),
    ],
)
def test_mistakes(store: Store, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        kept_positions(store, Exclude(**settings))
    assert words in str(refused.value)


def test_files_of_clusters_that_are_none_of_this_store(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "clusters.json"
    Clusters("other", ((10, 30),), {}).save(path)
    with pytest.raises(UserError, match="made from store of digest other, expected"):
        read_groups(store, str(path))
    Clusters(store.digest, ((10, 30), (30, 0)), {}).save(path)
    with pytest.raises(UserError, match="a sample in two clusters"):
        read_groups(store, str(path))
    write_json(path, read_json(path) | {"clusters": [[0, 10]]})
    with pytest.raises(UserError, match="damaged, its checksum"):
        read_groups(store, str(path))
    write_json(path, {"kind": "other", "store": store.digest, "clusters": [], "settings": {}})
    with pytest.raises(UserError, match="found 'other', expected clusters"):
        read_groups(store, str(path))


def test_a_group_is_named_by_plain_values(tmp_path: Path) -> None:
    store = write(tmp_path / "store.lmdb", [{"artist": {"name": "velin"}}, {}])
    with pytest.raises(UserError, match=r"sample 0: found artist .* expected the name of a group"):
        read_groups(store, "artist")
