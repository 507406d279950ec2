"""Random scores: what chance gives.

Shapes: Q queries, B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attr.methods.base import Batch, Context, Method
from lightning_attr.noise import keyed_generator


class Random(Method):
    """A score per query and sample, drawn by their ids.

    Args:
        seed: Another seed gives another order.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def prepare(self, context: Context) -> None:
        """Note the ids of the queries."""
        self._query_id = context.queries["id"].tolist()

    def measure(self, batch: Batch) -> Tensor:
        """Return uniform scores [B, Q]."""
        return torch.tensor(
            [[self._draw(query, sample) for query in self._query_id] for sample in batch["id"].tolist()]
        )

    def _draw(self, query: int, sample: int) -> float:
        return float(keyed_generator("random", self.seed, query, sample).random())
