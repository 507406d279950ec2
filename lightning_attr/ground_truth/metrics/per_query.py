"""The state that all metrics of attributions share: one value per query, and its mean over queries.

Shapes: Q queries in all, B queries of a batch.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn


class Summary(NamedTuple):
    """A mean over queries and how far to trust it; scalar tensors on the metric's device."""

    mean: Tensor
    """Mean over the queries whose value is known; NaN if there is none."""
    standard_error: Tensor
    """Sample standard deviation / sqrt(known); NaN for fewer than two queries."""
    known: Tensor
    """Number of queries in the mean."""
    unknown: Tensor
    """Number of queries left out because their value is NaN."""


def summarise(values: Tensor) -> Summary:
    """Return the mean and standard error over queries, leaving out NaN.

    Args:
        values: One value per query, ``[Q]``.

    >>> summary = summarise(torch.tensor([1.0, 3.0, torch.nan]))
    >>> summary.mean.item(), summary.standard_error.item(), summary.known.item(), summary.unknown.item()
    (2.0, 1.0, 2, 1)

    """
    unknown = values.isnan()
    values = values[~unknown].double()
    known = (~unknown).sum()
    mean = values.sum() / known
    variance = (values - mean).square().sum() / (known - 1).clamp(min=0)  # one query: 0 / 0 = NaN
    return Summary(mean, (variance / known).sqrt(), known, unknown.sum())


class PerQuery(Metric):
    """Base of the metrics that have one value per query; ``compute()`` is the ``Summary`` over queries.

    Values are keyed by query id, and a query that was seen twice counts once (its first value): under DDP, ``test``
    replicates samples to even out the batches of the ranks. So one metric holds one retrained model per query: of
    several models (say, ten random removals) keep several metrics, or average before ``update``. Values that
    disagree for one query are reported by a warning.

    Args:
        measure: What is measured, an identifier such as ``loss_change``. It names the state, because
            ``MetricCollection`` merges metrics whose states have equal names and equal values after the first batch:
            recall@5 and recall@10 could become one.
        **kwargs: Those of ``torchmetrics.Metric``.

    """

    is_differentiable = False
    full_state_update = False
    query_id: list[Tensor] | Tensor  # a tensor once the ranks are reduced

    def __init__(self, measure: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.measure = measure
        self.add_state("query_id", [], dist_reduce_fx="cat")
        self.add_state(measure, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all queries."""
        super().reset()
        # Empty tensors of the right dtypes, so that a rank without queries can take part in the reduction: for an
        # empty list torchmetrics would send float32, which does not gather with the int64 ids of the others.
        self._append(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))

    def record(self, query_id: Tensor, values: Tensor) -> None:
        """Keep the values ``[B]`` of the queries whose ids are ``query_id``, int64 ``[B]``."""
        if query_id.dtype != torch.int64 or query_id.shape != values.shape:
            found = f"{query_id.dtype} {list(query_id.shape)}"
            raise ValueError(f"query_id is {found}, expected torch.int64 {list(values.shape)}: one id per query")
        self._append(query_id, values)

    def values(self) -> tuple[Tensor, Tensor]:
        """Return the ids of the queries in ascending order, int64 ``[Q]``, and their values, float64 ``[Q]``.

        They are those of this rank; only ``compute()`` sees all ranks.
        """
        ids, order = dim_zero_cat(self.query_id).sort(stable=True)
        values = dim_zero_cat(getattr(self, self.measure))[order]
        again = ids[1:] == ids[:-1]
        differ = again & ~torch.isclose(values[1:], values[:-1], rtol=1e-3, equal_nan=True)
        if differ.any():
            query = int(ids[1:][differ][0])
            rank_zero_warn(f"{self.measure}: query {query} was seen with different values; the first one counts")
        first = torch.cat([again.new_ones(min(1, len(ids))), ~again])
        return ids[first], values[first]

    def compute(self) -> Summary:
        """Return the mean and standard error over the queries seen by all ranks."""
        return summarise(self.values()[1])

    def _append(self, query_id: Tensor, values: Tensor) -> None:
        for name, new in (("query_id", query_id), (self.measure, values)):
            getattr(self, name).append(new.to(self.device))


class Given(PerQuery):
    """A value of each query that is known already, such as what chance gets.

    >>> metric = Given("top_1")
    >>> metric.update(torch.tensor([7, 8]), torch.tensor([0.5, 0.25]))
    >>> round(metric.compute().mean.item(), 3)
    0.375
    """

    def update(self, query_id: Tensor, values: Tensor) -> None:
        """Add queries: ids int64 ``[B]``, values ``[B]``."""
        self.record(query_id, values)
