"""A random projection of per-sample gradients that never forms them.

A gradient ``G^T X`` of a layer is projected from both sides, ``(G R)^T (X S)``, with Rademacher matrices R [out, r] and
S [in, s]: as many operations as the factors are long, and no matrix of the size of the weight. It keeps inner products
on average; their error falls with the dimension ``r * s`` per layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from lightning_attr.gradients import SampleGradients
from lightning_attr.noise import keyed_generator


class Projection:
    """Projects the gradients by several weights to ``dimension`` numbers in all, or somewhat fewer.

    Args:
        weights: The selected weights.
        dimension: About how many numbers are kept of a sample.
        seed: Another seed is another projection.

    Raises:
        UserError: There are more weights than dimensions.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], dimension: int, seed: int = 0) -> None:
        if dimension < len(weights):
            raise UserError(f"method.projection: found {dimension}, expected at least {len(weights)}, one per weight")
        self.seed = seed
        self.ranks = {
            name: _ranks(_matrix_shape(weight), dimension // len(weights)) for name, weight in weights.items()
        }

    def __call__(self, gradients: SampleGradients) -> Tensor:
        """Return the projected gradients, [B, R]."""
        parts = []
        for name, g_BLO in gradients.at_output.items():
            rows, columns = self.ranks[name]
            # All layers on the text share the matrix of its side, and so its projection.
            parts.append(self._left(name, g_BLO, rows).transpose(1, 2) @ self._right("text", gradients.text, columns))
        for name, value in gradients.dense.items():
            rows, columns = self.ranks[name]
            matrix_BOI = value.reshape(len(value), value.shape[1], -1)
            right = self._right(name, matrix_BOI, columns)
            parts.append(self._left(name, right.transpose(1, 2), rows).transpose(1, 2))
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def _left(self, name: str, values: Tensor, rank: int) -> Tensor:
        return values @ _signs(self.seed, f"{name}/out", values.shape[-1], rank).to(values)

    def _right(self, name: str, values: Tensor, rank: int) -> Tensor:
        return values @ _signs(self.seed, f"{name}/in", values.shape[-1], rank).to(values)


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


def _ranks(shape: tuple[int, int], dimension: int) -> tuple[int, int]:
    """Return ranks of both sides, in the proportion of the sides, whose product is at most ``dimension``."""
    rows, columns = shape
    if rows * columns <= dimension:
        return rows, columns
    left = min(rows, max(1, round((dimension * rows / columns) ** 0.5)))
    right = min(columns, max(1, dimension // left))
    return min(rows, max(1, dimension // right)), right


@lru_cache(maxsize=1024)
def _signs(seed: int, key: str, size: int, rank: int) -> Tensor:
    """Return a Rademacher matrix [size, rank], scaled so that inner products are kept; the identity at full rank."""
    if rank == size:
        return torch.eye(size)
    bits = keyed_generator("projection", seed, key).integers(0, 2, (size, rank), dtype=np.int8)
    signs = torch.from_numpy(2 * bits.astype(np.float32) - 1)
    return signs / math.sqrt(rank)
