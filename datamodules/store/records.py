"""What a store holds: its schema, and samples with their arrays, captions and thumbnails.

Shapes: C x H x W a latent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_attr.errors import StoreError, one_line, quoted, shortened

Role = Literal["latent", "condition"]
"""What a field is to a model: what it makes, or what it is given beside that."""

#: The roles of fields in stores that were written before fields had roles.
IMPLIED: Mapping[str, Role] = {"latent": "latent", "text": "condition"}

#: Types that both NumPy and torch compute with.
DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)

#: More than any encoder gives, and less than breaks NumPy.
MOST_BYTES, MOST_AXES, MOST_NAME = 1 << 36, 16, 200

#: What batches hold of samples besides their fields: none with a role may be called so.
BATCH_KEYS = frozenset({"id", "showing", "view", "caption", "captions", "batch_size", "epoch"})


@dataclass(frozen=True)
class Field:
    """One array of every sample.

    Args:
        shape: Shape of one sample's array. The first axis counts its rows: views of a latent, captions of a text. A
            row can be read alone.
        dtype: Name of a numpy number type, such as "float16".
        role: What it is to a model; None is neither.

    Raises:
        StoreError: The shape is none, empty, has a zero, or is too large, or the type or the role is unknown.
    """

    shape: tuple[int, ...]
    dtype: str
    role: Role | None = None

    def __post_init__(self) -> None:
        sizes = self.shape if isinstance(self.shape, Sequence) else ()
        if not 0 < len(sizes) <= MOST_AXES or not all(_is_whole(size) and size >= 1 for size in sizes):
            raise StoreError(f"field: found shape {quoted(self.shape)}, expected 1 to {MOST_AXES} sizes of at least 1")
        object.__setattr__(self, "shape", tuple(int(size) for size in sizes))
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise StoreError(f"field: found type {quoted(self.dtype)}, expected a number type such as float16")
        if self.nbytes > MOST_BYTES:
            raise StoreError(f"field: found shape {self.shape}, expected at most {MOST_BYTES} bytes a sample")
        if self.role not in (None, *get_args(Role)):
            expected = f"one of {', '.join(get_args(Role))}, or none"
            raise StoreError(f"field: found role {quoted(self.role)}, expected {expected}")

    @property
    def nbytes(self) -> int:
        """Return the bytes of one sample's array."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Schema:
    """Which arrays the samples of a store have, and how they were made.

    Args:
        fields: Fields by name, e.g. "latent" [views, C, H, W] and "text" [captions, tokens, dim]. Of conditions each
            caption has a row, or all captions share one.
        encoders: What made the fields, by name ("image", "text"); anything that JSON can hold.

    Raises:
        StoreError: ``encoders`` is not JSON, a name is no word, another field than "latent" has its role, a condition
            has the name of something else in a batch, or conditions have different numbers of captions.
    """

    fields: Mapping[str, Field]
    encoders: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", dict(self.fields))
        object.__setattr__(self, "encoders", _as_json("schema.encoders", dict(self.encoders)))
        for name in (*self.fields, *self.encoders):
            if not name.isprintable() or not 0 < len(name.encode()) <= MOST_NAME:
                raise StoreError(f"schema: found the name {quoted(name)}, expected 1 to {MOST_NAME} bytes of text")
        if others := [name for name, field in self.fields.items() if field.role == "latent" and name != "latent"]:
            raise StoreError(f"schema: found a field {others[0]!r} of role latent, expected it to be called 'latent'")
        if taken := sorted(BATCH_KEYS.intersection(self.inputs)):
            raise StoreError(f"schema: found a condition {taken[0]!r}, expected another name: batches have one already")
        rows = {name: self.fields[name].shape[0] for name in self.conditions}
        if wrong := [name for name, count in rows.items() if count not in (1, self.captions)]:
            raise StoreError(
                f"schema: found {rows[wrong[0]]} rows of {wrong[0]}, expected {self.captions}, one a caption, or 1"
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return the names of the conditions."""
        return tuple(name for name, field in self.fields.items() if field.role == "condition")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of all that a model is given: the latent, if there is one, and the conditions."""
        return tuple(name for name, field in self.fields.items() if field.role is not None)

    @property
    def captions(self) -> int:
        """Return the most captions that a sample may have."""
        return max((self.fields[name].shape[0] for name in self.conditions), default=0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        fields = {name: vars(field) | {"shape": list(field.shape)} for name, field in self.fields.items()}
        return {"fields": fields, "encoders": self.encoders}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Schema:
        """Undo :meth:`to_json`.

        Raises:
            StoreError: It is not what that returns.
        """
        content = _keyed("schema", value, "fields", "encoders")
        fields = {
            name: Field(**_keyed(f"field {quoted(name)}", field, "shape", "dtype", "role"))
            for name, field in _keyed("fields", content["fields"]).items()
        }
        return cls(fields, _keyed("encoders", content["encoders"]))


@dataclass(frozen=True)
class Meta:
    """What is known of a sample besides its arrays.

    Args:
        id: Identity of the sample, at least 0.
        captions: The captions whose rows are the first ones of the conditions.
        licence: Licence of the image, if known.
        source: Where the image is from, if known.
        attributes: Anything else that JSON can hold, e.g. {"planted": true} or {"seed": 3}.

    Raises:
        StoreError: ``attributes`` is not JSON, the id is negative, or texts are none or not encodable.
    """

    id: int
    captions: tuple[str, ...]
    licence: str | None
    source: str | None
    attributes: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not _is_whole(self.id) or not 0 <= self.id < 1 << 63:
            raise StoreError(f"meta: found id {quoted(self.id)}, expected a whole number from 0 to 2^63 - 1")
        object.__setattr__(self, "id", int(self.id))
        place = f"sample {self.id}"
        if not isinstance(self.captions, (list, tuple)):
            raise StoreError(f"{place}: found captions {quoted(self.captions)}, expected a list of texts")
        object.__setattr__(self, "captions", tuple(self.captions))
        for text in (*self.captions, self.licence or "", self.source or ""):
            check_text(place, text)
        object.__setattr__(self, "attributes", _as_json(f"{place}: attributes", _keyed(place, self.attributes)))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return vars(self) | {"captions": list(self.captions)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Meta:
        """Undo :meth:`to_json`.

        Raises:
            StoreError: It is not what that returns.
        """
        return cls(**_keyed("meta", value, "id", "captions", "licence", "source", "attributes"))

    @property
    def caption(self) -> str:
        """Return the first caption; nothing where there is none."""
        return self.captions[0] if self.captions else ""

    @property
    def key(self) -> str | None:
        """Return what its source knows it by: a path, a row, a member of a shard; None where that is not known."""
        key = self.attributes.get("key", self.attributes.get("file_name"))  # as COCO calls it
        return key if isinstance(key, str) else None

    @property
    def title(self) -> str:
        """Return how answers name it: its key, where it has one, and its first caption, each on a line."""
        return "\n".join(filter(None, (self.key, self.caption)))


@dataclass(frozen=True)
class Sample:
    """One record of a store.

    Args:
        meta: Id, captions and the like.
        arrays: One array per field of the schema, of exactly its shape and type. Rows of conditions beyond the number
            of captions are zero.
        thumb: A small JPEG (or other image file) for galleries; may be empty.
        made_from: Digest of the file that it was made from; may be empty. No part of the store's own digest.
    """

    meta: Meta
    arrays: Mapping[str, NDArray[Any]]
    thumb: bytes
    made_from: str = ""


def check_text(place: str, text: object) -> None:
    """Check that something is text that a file can hold.

    Raises:
        StoreError: It is something else, or has half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise StoreError(f"{place}: found {quoted(text)}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"a lone surrogate (U+{ord(text[error.start]):X})"
        raise StoreError(f"{place}: found {found} at character {error.start} of a text, expected Unicode") from None


def first_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Say where two JSON objects differ first, such as "found image.patch 4, expected 8"; None where they are equal."""
    one, other = dict(_flat(found)), dict(_flat(expected))
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other or one[name] != other[name]:
            was, now = (quoted(each[name]) if name in each else "none" for each in (one, other))
            return f"found {shortened(name, 80)} {was}, expected {now}"
    return None


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of an object and of those in it by dotted names; texts in lists by their places."""
    if isinstance(value, list) and any(isinstance(part, str) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or (name and not value):
        yield name, value
        return
    for key, part in value.items():
        yield from _flat(part, f"{name}.{key}" if name else str(key))


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _keyed(what: str, value: Any, *keys: str) -> dict[str, Any]:
    """Return a JSON object that has exactly these keys, or any where none are named."""
    if not isinstance(value, Mapping):
        raise StoreError(f"{what}: found {quoted(value)}, expected an object")
    if keys and value.keys() != set(keys):
        raise StoreError(f"{what}: found keys {quoted(sorted(value))}, expected {', '.join(keys)}")
    return dict(value)


def _as_json(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value`` as it will be when read back, so that a record equals its stored self."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        plain: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{name}: found what JSON cannot hold ({shortened(one_line(error), 200)})") from error
    return plain
