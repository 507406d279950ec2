"""Metrics that check a ranking against known exemplars: recall@K and mean average precision.

Shapes: B queries of a batch, N samples.
"""

from typing import Any

from torch import Tensor

from lightning_attr.ground_truth.metrics.functional import average_precision, recall_at_k
from lightning_attr.ground_truth.metrics.per_query import PerQuery


class RecallAtK(PerQuery):
    """Recall@K, mean and standard error over queries (see ``functional.recall_at_k``).

    Queries without a relevant sample are left out and counted as unknown.

    Args:
        k: How many of the highest-scored samples are retrieved, at least 1.
        **kwargs: Those of ``torchmetrics.Metric``.

    >>> import torch
    >>> metric = RecallAtK(k=1)
    >>> metric.update(torch.tensor([7]), torch.tensor([[0.9, 0.1]]), torch.tensor([[True, True]]))
    >>> metric.compute().mean
    tensor(0.5000, dtype=torch.float64)

    """

    higher_is_better = True

    def __init__(self, k: int, **kwargs: Any) -> None:
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        super().__init__(f"recall_at_{k}", **kwargs)
        self.k = k

    def update(self, query_id: Tensor, scores: Tensor, relevant: Tensor) -> None:
        """Add queries: ids int64 ``[B]``, scores ``[B, N]``, exemplars bool ``[B, N]``."""
        self.record(query_id, recall_at_k(scores, relevant, self.k))


class MeanAveragePrecision(PerQuery):
    """Mean average precision (mAP) over queries, see ``functional.average_precision``.

    Queries without a relevant sample are left out and counted as unknown.

    >>> import torch
    >>> metric = MeanAveragePrecision()
    >>> metric.update(torch.tensor([7]), torch.tensor([[0.9, 0.1]]), torch.tensor([[False, True]]))
    >>> metric.compute().mean
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("average_precision", **kwargs)

    def update(self, query_id: Tensor, scores: Tensor, relevant: Tensor) -> None:
        """Add queries: ids int64 ``[B]``, scores ``[B, N]``, exemplars bool ``[B, N]``."""
        self.record(query_id, average_precision(scores, relevant))
