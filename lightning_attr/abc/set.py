"""A set of the AbC benchmark: a gallery, the queries that customised models made, and who made which of what.

AbC is "Evaluating Data Attribution for Text-to-Image Models" (ICCV 2023). A set is a folder::

    gallery.lmdb   distractors, which are the training set of the base, and all exemplars
    queries.lmdb   the images that the customised models made
    abc.json       the models: their exemplars, their queries by kind of prompt, their split

Shapes: N samples of the gallery, D distractors, G samples of a model's gallery.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from datamodules.store import Store
from lightning_attr.artifacts.provenance import differs
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.errors import UserError, quoted

FORMAT = 1

#: What a model may be for: exemplars of one are of no other.
SPLITS = ("train", "validation", "test")

#: The files of a set.
GALLERY, QUERIES, RECORD = "gallery.lmdb", "queries.lmdb", "abc.json"

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CustomModel:
    """A customised model: every image that it makes is influenced by its exemplars.

    Args:
        name: Its own in the set.
        category: What its exemplars are, such as ``artist`` or ``object``.
        split: ``train``, ``validation`` or ``test``.
        exemplars: Ids of samples of the gallery.
        queries: Ids of queries, by kind of prompt.
        checkpoint: Digest of its weights; None where they are not at hand.
    """

    name: str
    category: str
    split: str
    exemplars: tuple[int, ...]
    queries: Mapping[str, tuple[int, ...]]
    checkpoint: str | None = None

    @property
    def query_ids(self) -> tuple[int, ...]:
        """Return the ids of all its queries, ascending."""
        return tuple(sorted(query for ids in self.queries.values() for query in ids))


@dataclass(frozen=True, eq=False)
class AbcSet:
    """Customised models, the gallery that holds their exemplars, and the queries that they made.

    Args:
        gallery: The store of distractors and exemplars.
        queries: The store of queries.
        models: In the order of the file.

    Raises:
        UserError: A name, an exemplar or a query occurs twice where it may not, or is not in its store.
    """

    gallery: Store
    queries: Store
    models: tuple[CustomModel, ...]

    def __post_init__(self) -> None:
        check_models(self.models)
        for model in self.models:
            self.gallery.positions(model.exemplars)
            self.queries.positions(model.query_ids)

    @property
    def digests(self) -> dict[str, str]:
        """Return the digests of both stores."""
        return {"gallery": self.gallery.digest, "queries": self.queries.digest}

    @cached_property
    def distractors(self) -> Ints:
        """Return the positions of the samples of the gallery that are nobody's exemplars, ascending, [D]."""
        exemplars = [exemplar for model in self.models for exemplar in model.exemplars]
        return np.flatnonzero(~np.isin(self.gallery.ids, exemplars)).astype(np.int64)

    def gallery_of(self, model: CustomModel) -> Ints:
        """Return the positions of what a model's queries are compared with: distractors and its exemplars, [G]."""
        return np.union1d(self.distractors, self.gallery.positions(model.exemplars))

    def of_split(self, split: str | None) -> tuple[CustomModel, ...]:
        """Return the models of a split, as :func:`of_split` does."""
        return of_split(self.models, split)

    @classmethod
    def load(cls, folder: str | Path) -> AbcSet:
        """Read a set.

        Raises:
            UserError: A file is missing, damaged, or not of this set, or the record makes no sense.
        """
        path = Path(folder) / RECORD
        expected = {"format": int, "gallery": str, "queries": str, "models": list}
        record = read_record(path, expected, "record of an AbC set")
        if record["format"] != FORMAT:
            raise UserError(f"{path}: found an AbC set of format {record['format']}, expected {FORMAT}")
        gallery, queries = (_store(path, name, record) for name in (GALLERY, QUERIES))
        models = read_models(path, record["models"])
        try:
            return cls(gallery, queries, models)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def write_set(folder: str | Path, models: Iterable[CustomModel]) -> AbcSet:
    """Write the record of a set, whose stores lie in the folder already.

    Raises:
        UserError: A store is missing or damaged, or the models make no sense over them.
    """
    folder = Path(folder)
    made = AbcSet(Store(folder / GALLERY), Store(folder / QUERIES), tuple(models))
    record = {"format": FORMAT, "gallery": made.gallery.digest, "queries": made.queries.digest}
    write_record(folder / RECORD, {**record, "models": [asdict(model) for model in made.models]})
    return made


def of_split(models: Sequence[CustomModel], split: str | None) -> tuple[CustomModel, ...]:
    """Return the models of a split; None is all.

    Raises:
        UserError: There are none.
    """
    found = tuple(model for model in models if split in (None, model.split))
    if not found:
        have = sorted({model.split for model in models})
        raise UserError(f"split: found no model of {split}, expected one of {', '.join(have)}")
    return found


def check_models(models: Sequence[CustomModel]) -> None:
    """Check that models make sense together.

    Raises:
        UserError: There are none, or a name, an exemplar or a query occurs twice where it may not.
    """
    if not models:
        raise UserError("models: found none, expected at least one")
    splits: dict[int, str] = {}
    makers: dict[int, str] = {}
    names: set[str] = set()
    for model in models:
        if model.name in names:
            raise UserError(f"models: found {model.name} twice, expected each once")
        names.add(model.name)
        _check_model(model)
        for exemplar in model.exemplars:
            if (split := splits.setdefault(exemplar, model.split)) != model.split:
                raise UserError(
                    f"{model.name}: found exemplar {exemplar} in the splits {split} and {model.split}, "
                    "expected each in one"
                )
        for query in model.query_ids:
            if query in makers:
                raise UserError(
                    f"{model.name}: found query {query}, which {makers[query]} has made; expected each once"
                )
            makers[query] = model.name


def _check_model(model: CustomModel) -> None:
    if model.split not in SPLITS:
        raise UserError(f"{model.name}: found split {quoted(model.split)}, expected one of {', '.join(SPLITS)}")
    if not model.exemplars or not model.query_ids:
        missing = "queries" if model.exemplars else "exemplars"
        raise UserError(f"{model.name}: found no {missing}, expected at least one")
    if len(set(model.exemplars)) < len(model.exemplars):
        raise UserError(f"{model.name}: found an exemplar twice, expected each once")


def _store(path: Path, name: str, record: Mapping[str, Any]) -> Store:
    store = Store(path.with_name(name))
    expected = record[name.removesuffix(".lmdb")]
    if differs(store.digest, expected):
        raise UserError(f"{store.path}: found digest {store.digest}, expected {expected} as {path} has it")
    return store


def read_models(path: str | Path, found: Sequence[object]) -> tuple[CustomModel, ...]:
    """Return the models that a file of a set names.

    Args:
        path: The file, for messages.
        found: The models as JSON has them.

    Raises:
        UserError: One of them is none.
    """
    return tuple(_model(f"{path}: models[{index}]", each) for index, each in enumerate(found))


def _model(place: str, found: object) -> CustomModel:
    hints = get_type_hints(CustomModel)
    if not isinstance(found, dict) or found.keys() != hints.keys():
        raise UserError(f"{place}: found {quoted(found)}, expected {', '.join(hints)}")
    for name, hint in hints.items():
        if get_origin(hint) not in (tuple, Mapping) and not isinstance(found[name], get_args(hint) or hint):
            raise UserError(f"{place}: found {name} {quoted(found[name])}, expected a text")
    if not isinstance(found["queries"], dict):
        raise UserError(f"{place}: found queries {quoted(found['queries'])}, expected ids by kind of prompt")
    queries = {kind: _ids(f"{place}: queries of {kind}", ids) for kind, ids in found["queries"].items()}
    return CustomModel(**{**found, "exemplars": _ids(f"{place}: exemplars", found["exemplars"]), "queries": queries})


def _ids(place: str, found: object) -> tuple[int, ...]:
    if not isinstance(found, Sequence) or not all(type(each) is int for each in found):
        raise UserError(f"{place}: found {quoted(found)}, expected a list of ids")
    return tuple(found)
