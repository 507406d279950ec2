"""A random projection of per-sample gradients that never forms them.

A gradient ``G^T X`` of a layer is projected from both sides, ``(G R)^T (X S)``, with Rademacher matrices R [out, r] and
S [in, s]: as many operations as the factors are long, and no matrix of the size of the weight. It keeps inner products
on average; their error falls with the dimension ``r * s`` per layer.

Shapes: B samples, R numbers kept of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lightning_attr.errors import UserError
from lightning_attr.gradients import SampleGradients
from lightning_attr.noise import keyed_generator
from lightning_attr.precision import outside_autocast


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
        self._signs: dict[tuple[str, int], Tensor] = {}

    @outside_autocast
    def __call__(self, gradients: SampleGradients) -> Tensor:
        """Return the projected gradients, [B, R]; which weights are on a condition must be the same at every call."""
        parts = []
        for condition, at_output in gradients.at_output.items():
            for name, g_BLO in at_output.items():
                rows, columns = self.ranks[name]
                # All layers on a condition share the matrix of its side, and so its projection.
                right_BLS = self._project(gradients.conditions[condition], condition, columns)
                parts.append(self._project(g_BLO, f"{name}/out", rows).mT @ right_BLS)
        for name, value in gradients.dense.items():
            rows, columns = self.ranks[name]
            matrix_BOI = value.reshape(len(value), value.shape[1], -1)
            right_BOS = self._project(matrix_BOI, f"{name}/in", columns)
            parts.append(self._project(right_BOS.mT, f"{name}/out", rows).mT)
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def _project(self, values: Tensor, key: str, rank: int) -> Tensor:
        """Project the last axis of ``values``; at full rank they stay as they are."""
        if rank == values.shape[-1]:
            return values
        if (key, rank) not in self._signs:
            self._signs[key, rank] = rademacher(self.seed, key, values.shape[-1], rank).to(values)
        return values @ self._signs[key, rank]


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


def rademacher(seed: int, key: str, size: int, rank: int) -> Tensor:
    """Return a matrix of random signs, float32 [size, rank], scaled so that it keeps inner products on average."""
    bits = keyed_generator("projection", seed, key).integers(0, 2, (size, rank), dtype=np.int8)
    return torch.from_numpy(2 * bits.astype(np.float32) - 1) / math.sqrt(rank)
