"""Random scores: what chance gives."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attr.methods.base import Batch, Method
from lightning_attr.noise import keyed_generator


class Random(Method):
    """A score per query and sample, drawn by their ids.

    Args:
        seed: Another seed gives another order.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, queries: Batch, batch: Batch) -> Tensor:
        """Return uniform scores [Q, B]."""
        return torch.tensor([[self._draw(query, sample) for sample in batch["id"]] for query in queries["id"]])

    def _draw(self, query: Tensor, sample: Tensor) -> float:
        return float(keyed_generator("random", self.seed, int(query), int(sample)).random())
