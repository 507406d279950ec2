"""How often training shows each sample of a store in an epoch: a field of its own, where that is not once.

Shapes: N samples of the store.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamodules.store.records import Field
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
