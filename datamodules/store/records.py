"""What a store holds: its schema, and samples with their arrays, captions and thumbnails.

Shapes: C x H x W a latent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_attr.errors import StoreError

Role = Literal["latent", "condition"]
"""What a field is to a model: what it makes, or what it is given beside that."""

#: The roles of fields in stores that were written before fields had roles.
IMPLIED: Mapping[str, Role] = {"latent": "latent", "text": "condition"}

#: What batches hold of samples besides their fields: none with a role may be called so.
BATCH_KEYS = frozenset({"id", "view", "caption", "captions", "batch_size", "epoch"})


@dataclass(frozen=True)
class Field:
    """One array of every sample.

    Args:
        shape: Shape of one sample's array. The first axis counts its rows: views of a latent, captions of a text. A
            row can be read alone.
        dtype: Name of a numpy number type, such as "float16".
        role: What it is to a model; None is neither.

    Raises:
        StoreError: The shape is empty or has a zero, or the type or the role is unknown.
    """

    shape: tuple[int, ...]
    dtype: str
    role: Role | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if not self.shape or min(self.shape) < 1:
            raise StoreError(f"field: found shape {self.shape}, expected sizes of at least 1")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise StoreError(f"field: found type {self.dtype!r}, expected a numpy number type") from error
        if dtype.kind not in "biuf":
            raise StoreError(f"field: found type {self.dtype!r}, expected a numpy number type")
        object.__setattr__(self, "dtype", dtype.name)
        if self.role not in (None, *get_args(Role)):
            raise StoreError(f"field: found role {self.role!r}, expected one of {', '.join(get_args(Role))}, or none")

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
        StoreError: ``encoders`` is not JSON, another field than "latent" has its role, a condition has the name of
            something else in a batch, or conditions have different numbers of captions.
    """

    fields: Mapping[str, Field]
    encoders: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", dict(self.fields))
        object.__setattr__(self, "encoders", _as_json("schema.encoders", dict(self.encoders)))
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
        """Undo :meth:`to_json`."""
        fields = {name: Field(**field) for name, field in value["fields"].items()}
        return cls(fields, value["encoders"])


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
        StoreError: ``attributes`` is not JSON, or the id is negative.
    """

    id: int
    captions: tuple[str, ...]
    licence: str | None
    source: str | None
    attributes: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", int(self.id))
        object.__setattr__(self, "captions", tuple(self.captions))
        if not 0 <= self.id < 1 << 63:
            raise StoreError(f"meta: found id {self.id}, expected one from 0 to 2^63 - 1")
        object.__setattr__(self, "attributes", _as_json("meta.attributes", dict(self.attributes)))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return vars(self) | {"captions": list(self.captions)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Meta:
        """Undo :meth:`to_json`."""
        return cls(**value)


@dataclass(frozen=True)
class Sample:
    """One record of a store.

    Args:
        meta: Id, captions and the like.
        arrays: One array per field of the schema, of exactly its shape and type. Rows of conditions beyond the number
            of captions are zero.
        thumb: A small JPEG (or other image file) for galleries; may be empty.
    """

    meta: Meta
    arrays: Mapping[str, NDArray[Any]]
    thumb: bytes


def _as_json(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value`` as it will be when read back, so that a record equals its stored self."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name}: found what JSON cannot hold ({error})") from error
    return plain
