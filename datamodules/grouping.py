"""What samples belong to: the groups of a store by an attribute of its samples, or by a file of clusters.

Shapes: N samples, G groups, M memberships: a sample in nested folders has several.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules.store import Meta, Store
from lightning_attr.artifacts.provenance import differs
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.errors import UserError, quoted

Ints = NDArray[np.int64]

NONE = "(none)"
"""The group of the samples that have not the attribute."""

KIND = "clusters"
"""Of a file of clusters, as it says itself."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of some samples.

    Args:
        grouping: By what they are grouped: the attribute, or the name of the file.
        names: Of the groups, [G], ascending.
        group: The group of each membership, int64 [M], from 0 to G - 1.
        sample: Its sample, int64 [M], from 0 to N - 1: a place among the samples that were asked for.
    """

    grouping: str
    names: tuple[str, ...]
    group: Ints
    sample: Ints

    @property
    def sizes(self) -> Ints:
        """Return the number of samples of each group, int64 [G]."""
        return np.bincount(self.group, minlength=len(self.names)).astype(np.int64)

    @property
    def named(self) -> NDArray[np.bool_]:
        """Return which groups are some, bool [G]: what has no group is none, and takes no part in a ranking."""
        return np.array([name != NONE for name in self.names], np.bool_)

    def members(self, name: str) -> Ints:
        """Return the samples of a group, ascending.

        Raises:
            UserError: There is no such group.
        """
        if name not in self.names:
            shown = ", ".join(self.names[:10]) + (f" and {len(self.names) - 10} more" if len(self.names) > 10 else "")
            raise UserError(f"group: found {quoted(name)}, expected one of {self.grouping}: {shown}")
        return np.sort(self.sample[self.group == self.names.index(name)])


def read_groups(store: Store, grouping: str, sample_ids: ArrayLike | None = None) -> Groups:
    """Return the groups of samples of a store.

    Args:
        store: The store.
        grouping: An attribute of its samples, such as ``artist``, a text or a list of texts; samples that have it not
            are the group ``(none)``. Or a file of clusters, ``NAME.json``; an image in no cluster is its own group.
        sample_ids: The samples, [N]; None is all of the store.

    Raises:
        UserError: No sample has the attribute, its value names no group, or the file is of another store.
    """
    positions = np.arange(len(store)) if sample_ids is None else store.positions(sample_ids)
    names_of = _clusters(store, grouping) if is_file(grouping) else _attribute(store, grouping, positions)
    found = [(name, place) for place, position in enumerate(positions) for name in names_of[int(position)]]
    names = sorted({name for name, _ in found})
    index = {name: place for place, name in enumerate(names)}
    pairs = np.array([(index[name], place) for name, place in found], np.int64).reshape(-1, 2)
    return Groups(grouping_name(grouping), tuple(names), pairs[:, 0], pairs[:, 1])


def is_file(grouping: str) -> bool:
    """Return whether a grouping is a file of clusters, and not an attribute."""
    return grouping.endswith(".json")


def grouping_name(grouping: str) -> str:
    """Return what tables call a grouping: the attribute, or the name of the file, wherever that lies."""
    return Path(grouping).name


def _attribute(store: Store, name: str, positions: Ints) -> dict[int, Sequence[str]]:
    """Return the groups of each position by an attribute."""
    metas = {int(position): store.meta(int(position)) for position in positions}
    if not any(name in meta.attributes for meta in metas.values()):
        known = sorted({each for meta in metas.values() for each in meta.attributes})
        raise UserError(
            f"grouping: found no sample of {store.path} with the attribute {quoted(name)}, expected a file of clusters "
            f"(.json) or one of {', '.join(known) or 'none: its samples have no attributes'}"
        )
    return {position: groups_of(meta, name) or [NONE] for position, meta in metas.items()}


def groups_of(meta: Meta, name: str) -> list[str]:
    """Return the groups that an attribute of a sample names, each once; none where it is missing or empty.

    Raises:
        UserError: Its value is no text, number, truth value, or list of these.
    """
    value = meta.attributes.get(name)
    values = value if isinstance(value, list) else [value]
    if strange := [each for each in values if isinstance(each, dict | list)]:
        raise UserError(f"sample {meta.id}: found {name} {quoted(strange[0])}, expected the name of a group")
    texts = (each if isinstance(each, str) else json.dumps(each) for each in values if each not in (None, ""))
    return list(dict.fromkeys(texts))


@dataclass(frozen=True)
class Clusters:
    """Images that belong together, as a file keeps them.

    Args:
        store: The digest of the store that they are of.
        ids: The samples of each cluster, two or more, ascending; no sample is in two.
        settings: How they were found; anything that JSON can hold.
    """

    store: str
    ids: tuple[tuple[int, ...], ...]
    settings: Mapping[str, Any]

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        write_record(path, {"kind": KIND, "store": self.store, "clusters": self.ids, "settings": self.settings})

    @classmethod
    def load(cls, path: str | Path) -> Clusters:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: It is missing, damaged or something else.
        """
        found = read_record(path, {"kind": str, "store": str, "clusters": list, "settings": dict}, "clusters of images")
        if found["kind"] != KIND:
            raise UserError(f"{path}: found {quoted(found['kind'])}, expected {KIND}")
        samples = [sample for cluster in found["clusters"] for sample in cluster]
        if len(set(samples)) < len(samples):
            raise UserError(f"{path}: found a sample in two clusters, expected each in one")
        return cls(found["store"], tuple(map(tuple, found["clusters"])), found["settings"])


def _clusters(store: Store, path: str) -> dict[int, Sequence[str]]:
    """Return the cluster of each position of a store: named by its first image, as an image in none is by itself."""
    clusters = Clusters.load(path)
    if differs(clusters.store, store.digest):
        raise UserError(f"{path}: made from store of digest {clusters.store}, expected {store.digest} of {store.path}")
    first = {position: position for position in range(len(store))}
    for ids in clusters.ids:
        positions = [int(position) for position in store.positions(ids)]
        first |= dict.fromkeys(positions, positions[0])
    names = dict(zip(range(len(store)), _names(store), strict=True))
    return {position: [names[leader]] for position, leader in first.items()}


def _names(store: Store) -> Iterator[str]:
    """Yield a name of each image: its key, with its id where others have that key or it has none."""
    metas = [store.meta(position) for position in range(len(store))]
    times = Counter(meta.key for meta in metas)
    for meta in metas:
        yield meta.key if meta.key and times[meta.key] == 1 else " ".join(filter(None, (meta.key, f"image {meta.id}")))
