"""Metrics that check an attribution against retrained models: leave-K-out and the linear datamodelling score.

Shapes: B queries of a batch, N samples, M retrained models, D draws.
"""

from typing import Any

from torch import Tensor

from lightning_attr.ground_truth.metrics.functional import (
    generation_deviation,
    linear_datamodelling_score,
    loss_change,
)
from lightning_attr.ground_truth.metrics.per_query import PerQuery


class LossChange(PerQuery):
    """Loss change Delta L of leave-K-out, mean and standard error over queries (see ``functional.loss_change``).

    >>> import torch
    >>> metric = LossChange()
    >>> metric.update(torch.tensor([7, 8]), torch.tensor([[0.1], [0.1]]), torch.tensor([[0.2], [0.4]]))
    >>> metric.compute().mean
    tensor(0.2000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("loss_change", **kwargs)

    def update(self, query_id: Tensor, original: Tensor, retrained: Tensor) -> None:
        """Add queries: ids int64 ``[B]``, losses ``[B, D]`` of the original and the retrained model on equal draws."""
        self.record(query_id, loss_change(original, retrained))


class GenerationDeviation(PerQuery):
    """Generation deviation Delta G of leave-K-out (MSE), see ``functional.generation_deviation``.

    >>> import torch
    >>> metric = GenerationDeviation()
    >>> metric.update(torch.tensor([7]), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    >>> metric.compute().mean
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("generation_deviation", **kwargs)

    def update(self, query_id: Tensor, original: Tensor, regenerated: Tensor) -> None:
        """Add queries: ids int64 ``[B]``, images ``[B, ...]`` and their regenerations by the retrained model."""
        self.record(query_id, generation_deviation(original, regenerated))


class LinearDatamodellingScore(PerQuery):
    """Linear datamodelling score (LDS), see ``functional.linear_datamodelling_score``.

    >>> import torch
    >>> metric = LinearDatamodellingScore()
    >>> masks = torch.tensor([[True, False], [False, True]])
    >>> metric.update(torch.tensor([7]), torch.tensor([[2.0, 1.0]]), masks, torch.tensor([[0.1, 0.2]]))
    >>> metric.compute().mean
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("linear_datamodelling_score", **kwargs)

    def update(self, query_id: Tensor, scores: Tensor, masks: Tensor, losses: Tensor) -> None:
        """Add queries: ids int64 ``[B]``, scores ``[B, N]``, the models' subsets bool ``[M, N]``, losses ``[B, M]``."""
        self.record(query_id, linear_datamodelling_score(scores, masks, losses))
