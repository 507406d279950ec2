import json
import math
import statistics
import warnings
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torchmetrics import MetricCollection

from lightning_attr.ground_truth.metrics import LossChange, RecallAtK, Summary, summarise


def add(metric: LossChange, changes: dict[int, float]) -> None:
    """Give the metric queries with these loss changes."""
    retrained = torch.tensor(list(changes.values()), dtype=torch.float64)[:, None]
    metric.update(torch.tensor(list(changes)), torch.zeros_like(retrained), retrained)


def loss_change_of(*batches: dict[int, float]) -> Summary:
    metric = LossChange()
    for batch in batches:
        add(metric, batch)
    return metric.compute()


def numbers(summary: Summary) -> list[float]:
    """The summary as mean, standard error, known, unknown."""
    return [float(field) for field in summary]


def test_summary_is_the_mean_and_its_standard_error() -> None:
    values = [0.3, -1.0, 2.5, 0.7, 0.7]
    summary = summarise(torch.tensor(values, dtype=torch.float64))
    assert summary.mean.item() == pytest.approx(statistics.mean(values), rel=1e-12)
    assert summary.standard_error.item() == pytest.approx(statistics.stdev(values) / math.sqrt(5), rel=1e-12)
    assert numbers(summary)[2:] == [5, 0]


def test_nan_is_left_out_and_counted() -> None:
    assert numbers(loss_change_of({1: 1.0, 2: math.nan, 3: 3.0})) == [2, 1, 2, 1]


def test_one_query_has_no_standard_error() -> None:
    summary = loss_change_of({4: 0.5})
    assert summary.mean == 0.5
    assert summary.known == 1
    assert summary.standard_error.isnan()


def test_without_queries_the_mean_is_unknown() -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        summary = LossChange().compute()
    assert summary.mean.isnan()
    assert summary.known == 0


@pytest.mark.parametrize("again", [[{1: 1.0, 2: 5.0, 1000: 9.0}, {2: 5.0}], [{2: 5.0, 1: 1.0}, {2: 5.0, 1000: 9.0}]])
def test_a_query_seen_twice_counts_once(again: list[dict[int, float]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = loss_change_of(*again)
    assert summary.known == 3
    assert summary.mean == 5
    assert summary.standard_error.item() == pytest.approx(statistics.stdev([1, 5, 9]) / math.sqrt(3), rel=1e-12)


def test_a_query_repeated_within_a_batch_counts_once() -> None:
    metric = LossChange()
    metric.update(torch.tensor([7, 7, 8]), torch.zeros(3, 1), torch.tensor([[1.0], [1.0], [4.0]]))
    assert metric.compute().mean == 2.5


def test_a_repeated_unknown_query_counts_once_as_unknown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = loss_change_of({1: math.nan, 2: 3.0}, {1: math.nan})
    assert summary.mean == 3
    assert summary.known == summary.unknown == 1


def test_values_that_disagree_are_reported_and_the_first_counts() -> None:
    with pytest.warns(UserWarning, match="loss_change: query 5 was seen with different values"):
        summary = loss_change_of({4: 1.0, 5: 3.0}, {5: 4.0})
    assert summary.mean == 2


def test_the_order_of_queries_does_not_change_a_bit() -> None:
    changes = dict(enumerate(torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()))
    backwards = [{query: change} for query, change in reversed(changes.items())]
    assert loss_change_of(changes) == loss_change_of(*backwards)


def test_values_are_listed_by_query_id() -> None:
    metric = LossChange()
    add(metric, {9: 0.9, 2: 0.2})
    add(metric, {5: 0.5})
    query_id, values = metric.values()
    assert query_id.tolist() == [2, 5, 9]
    assert values.tolist() == [0.2, 0.5, 0.9]


def test_reset_forgets_and_forward_accumulates() -> None:
    metric = LossChange()
    add(metric, {1: 100.0})
    metric.reset()
    zero, batch = torch.zeros(1, 1), torch.ones(1, 1)
    assert metric(torch.tensor([1]), zero, batch).mean == 1
    assert metric(torch.tensor([2]), zero, 3 * batch).mean == 3
    assert metric.compute().mean == 2


def test_half_precision_modules_keep_full_precision_values() -> None:
    module = torch.nn.ModuleDict({"metric": LossChange()}).half()
    metric = module["metric"]
    assert isinstance(metric, LossChange)
    add(metric, {2**40 + 1: 0.1})
    query_id, values = metric.values()
    assert (query_id.item(), values.item()) == (2**40 + 1, 0.1)


def test_a_collection_keeps_metrics_apart_that_start_equal() -> None:
    collection = MetricCollection({"at_1": RecallAtK(1), "at_2": RecallAtK(2)})
    relevant = torch.tensor([[True, False, False]])
    collection.update(torch.tensor([1]), torch.tensor([[3.0, 2.0, 1.0]]), relevant)  # both recall 1
    collection.update(torch.tensor([2]), torch.tensor([[2.0, 3.0, 1.0]]), relevant)  # second place
    result = collection.compute()
    assert (result["at_1"].mean, result["at_2"].mean) == (0.5, 1)


def test_query_ids_must_be_integers_one_per_query() -> None:
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"query_id is torch.float32 \[2\], expected torch.int64 \[2\]"):
        LossChange().update(torch.zeros(2), zeros, zeros)
    with pytest.raises(ValueError, match=r"query_id is torch.int64 \[3\], expected torch.int64 \[2\]"):
        LossChange().update(torch.arange(3), zeros, zeros)


RANKS: list[list[dict[int, float]]] = [[{0: 1.0, 2: 2.0}, {2**40 + 1: 6.0}], [{1: 3.0, 0: 1.0}]]
"""The batches of each rank: of uneven sizes, query 0 replicated as the distributed sampler would."""


def evaluate_on_rank(rank: int, folder: str) -> None:
    """One of two processes: reduce a metric over both, then one that only rank 0 has queries for."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    everywhere, lopsided = LossChange(), LossChange()
    for batch in RANKS[rank]:
        add(everywhere, batch)
    if rank == 0:
        add(lopsided, {2**40 + 1: 1.0, 5: 3.0})
    results = [numbers(everywhere.compute()), numbers(lopsided.compute())]
    add(everywhere, {3: 3.0})  # the rank's own values were restored: more can be added
    results.append(numbers(everywhere.compute()))
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_reduce_to_the_result_of_one(tmp_path: Path) -> None:
    spawn(evaluate_on_rank, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    expected = [
        [3.0, statistics.stdev([1, 2, 3, 6]) / 2, 4.0, 0.0],
        [2.0, 1.0, 2.0, 0.0],
        [3.0, statistics.stdev([1, 2, 3, 6, 3]) / math.sqrt(5), 5.0, 0.0],
    ]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    for found, wanted in zip(results[0], expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)
