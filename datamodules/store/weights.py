"""How often training shows each sample of a store in an epoch: a field of its own, where that is not once.

Shapes: N samples of the store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from datamodules.store.records import Field, Meta
from lightning_attr.errors import StoreError

WEIGHT = "weight"
"""The name of the field."""

WEIGHTS = Field((1,), "int32")
"""The field; it is no input of a model."""

MOST = 10_000


def weight_array(weight: int) -> NDArray[np.int32]:
    """Return what the field holds of a sample, [1]."""
    return np.array([weight], np.int32)


def checked_weights(path: str, values: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the weights [N] of values of the field [N, 1].

    Raises:
        StoreError: One is no number of times.
    """
    weights = values.reshape(-1).astype(np.int64)
    if len(wrong := weights[(weights < 1) | (weights > MOST)]):
        raise StoreError(f"{path}: found a {WEIGHT} of {wrong[0]}, expected 1 to {MOST}")
    return weights


def check_field(path: str, field: Field) -> None:
    """Check that the field of this name is the one.

    Raises:
        StoreError: It is another.
    """
    if field != WEIGHTS:
        found = f"{WEIGHT} {list(field.shape)} {field.dtype} of role {field.role}"
        raise StoreError(f"{path}: found {found}, expected {list(WEIGHTS.shape)} {WEIGHTS.dtype} of none")


def lost_weight(metas: Iterable[Meta]) -> Meta | None:
    """Return a sample whose weight a store without the field tells in an attribute; None where there is none.

    Stores were made so of kohya's folders before there was the field. All their samples lie in folders such as
    ``10_style``, so that of other stores one sample is looked at.
    """
    of_kohya = takewhile(lambda meta: _is_repeated(meta.attributes.get("groups")), metas)
    return next((meta for meta in of_kohya if WEIGHT in meta.attributes), None)


def _is_repeated(groups: object) -> bool:
    """Return whether groups are one folder whose name begins with a number of repeats."""
    match groups:
        case [str(folder)]:
            return re.match(r"[1-9]\d{0,2}_", folder) is not None
        case _:
            return False
