from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_attr.ground_truth.metrics import (
    GenerationDeviation,
    LinearDatamodellingScore,
    LossChange,
    MeanAveragePrecision,
    PerQuery,
    RecallAtK,
)
from lightning_attr.ground_truth.metrics.functional import (
    average_precision,
    generation_deviation,
    linear_datamodelling_score,
    loss_change,
    recall_at_k,
)

QUERIES, SAMPLES, MODELS = 5, 20, 8
GENERATOR = torch.Generator().manual_seed(0)
A, B = torch.rand(2, QUERIES, 3, 4, generator=GENERATOR)
SCORES = torch.randn(QUERIES, SAMPLES, generator=GENERATOR)
RELEVANT = (torch.rand(QUERIES, SAMPLES, generator=GENERATOR) < 0.3).index_fill(0, torch.tensor([3]), False)
MASKS = torch.rand(MODELS, SAMPLES, generator=GENERATOR) < 0.5
LOSSES = torch.rand(QUERIES, MODELS, generator=GENERATOR)

CASES: list[tuple[Callable[[], PerQuery], tuple[Tensor, ...], Tensor]] = [
    (LossChange, (A[:, 0], B[:, 0]), loss_change(A[:, 0], B[:, 0])),
    (GenerationDeviation, (A, B), generation_deviation(A, B)),
    (lambda: RecallAtK(4), (SCORES, RELEVANT), recall_at_k(SCORES, RELEVANT, 4)),
    (MeanAveragePrecision, (SCORES, RELEVANT), average_precision(SCORES, RELEVANT)),
    (LinearDatamodellingScore, (SCORES, MASKS, LOSSES), linear_datamodelling_score(SCORES, MASKS, LOSSES)),
]


@pytest.mark.parametrize(("make", "inputs", "expected"), CASES)
def test_batches_give_the_mean_of_the_values_per_query(
    make: Callable[[], PerQuery], inputs: tuple[Tensor, ...], expected: Tensor
) -> None:
    metric = make()
    ids = torch.arange(QUERIES)
    for rows in (slice(0, 3), slice(3, 5)):
        metric.update(ids[rows], *(value if value is MASKS else value[rows] for value in inputs))
    torch.testing.assert_close(metric.values(), (ids, expected), rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(metric.compute().mean, expected.nanmean(), rtol=1e-12, atol=0)


def test_queries_without_exemplars_are_counted_as_unknown() -> None:
    for metric in (RecallAtK(4), MeanAveragePrecision()):
        metric.update(torch.arange(QUERIES), SCORES, RELEVANT)
        summary = metric.compute()
        assert summary.known == QUERIES - 1
        assert summary.unknown == 1


def test_recall_needs_a_positive_k() -> None:
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        RecallAtK(0)
