"""What images are compared by: the interface of a feature, and the comparison.

Shapes: Q queries, B samples, R views or captions of a sample, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.store import Store
from lightning_attr.precision import outside_autocast

Batch = Mapping[str, Tensor]
"""What ``LatentDataModule`` gives to ``predict``."""


class Feature(ABC):
    """Rows of numbers that tell what a sample is; the constructor's arguments are attributes of the same names."""

    @property
    def name(self) -> str:
        """Return what tables and figures call it."""
        return type(self).__name__.lower()

    @property
    def weights(self) -> str | None:
        """Return the digest of the weights that it reads; None where it reads none."""
        return None

    def config(self) -> dict[str, Any]:
        """Return the name of the class under "class", its arguments, and the digest of its weights, JSON-ready."""
        arguments = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        weights = {} if self.weights is None else {"weights": self.weights}
        return {"class": type(self).__name__, **arguments, **weights}

    def to(self, device: torch.device, /) -> Self:
        """Move to ``device``, where the rows will be."""
        return self

    @abstractmethod
    def rows(self, store: Store, batch: Batch) -> Tensor:
        """Return the rows of a batch of a store, float [B, R, F]; a sample's view or caption has one each."""

    def counts(self, batch: Batch) -> Tensor | None:
        """Return how many rows of each sample are its own, the rest being padding, [B]; None where all are."""
        return None

    def needs_encoders(self) -> bool:
        """Return whether the rows mean the same only where stores were made with the same encoders."""
        return False


@outside_autocast
def largest_cosines(query_QF: Tensor, sample_BRF: Tensor, counts_B: Tensor | None = None) -> Tensor:
    """Return the cosine of each sample's most similar row with every query, float32 [B, Q].

    Args:
        query_QF: Features of the queries.
        sample_BRF: Features of the samples.
        counts_B: How many rows of each sample are its own, the rest being padding; None where all are.
    """
    cosine_BRQ = F.normalize(sample_BRF.float(), dim=2) @ F.normalize(query_QF.float(), dim=1).T
    if counts_B is not None:
        padding_BR = torch.arange(sample_BRF.shape[1], device=counts_B.device) >= counts_B[:, None]
        cosine_BRQ = cosine_BRQ.masked_fill(padding_BR[:, :, None], -torch.inf)
    return cosine_BRQ.amax(1)
