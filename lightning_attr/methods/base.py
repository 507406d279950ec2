"""The interface of an attribution method that scores many queries in one pass over the store.

Shapes: Q queries, B samples, V views, K captions; a batch is what ``LatentDataModule`` gives to ``predict``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Batch = Mapping[str, Tensor]


class Method(ABC):
    """Scores samples for queries; the constructor's arguments are its settings."""

    @property
    def name(self) -> str:
        """What tables and figures call it."""
        return type(self).__name__.lower()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain values."""
        return dict(vars(self))

    @abstractmethod
    def score(self, queries: Batch, batch: Batch) -> Tensor:
        """Return the scores of a batch of samples for all queries, float32 [Q, B]; higher = more influential."""
