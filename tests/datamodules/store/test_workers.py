"""Reading in other processes, however they start, and two datasets on one file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules import Store
from datamodules.loading import Key, PredictBatches, TrainBatches

KEYS = [(0, np.arange(start, start + 10)) for start in range(0, 150, 10)]


# The last two import everything anew in each worker, which takes seconds.
@pytest.mark.parametrize(
    ("method", "workers"),
    [("fork", 2), *(pytest.param(method, 1, marks=pytest.mark.slow) for method in ("spawn", "forkserver"))],
)
def test_workers_read_what_the_parent_reads(store_path: Path, method: str, workers: int) -> None:
    dataset = TrainBatches(Store(store_path), seed=3)
    expected = [dataset[key] for key in KEYS]  # the file is open here before the workers start
    loader = DataLoader(dataset, batch_size=None, sampler=KEYS, num_workers=workers, multiprocessing_context=method)
    for batch, wanted in zip(loader, expected, strict=True):
        assert batch.keys() == wanted.keys()
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert torch.equal(dataset[KEYS[0]]["latent"], expected[0]["latent"])  # and it is still open here


@pytest.mark.parametrize("workers", [0, 2])
def test_two_datasets_on_one_file(store_path: Path, workers: int) -> None:
    first, second = PredictBatches(Store(store_path)), PredictBatches(Store(str(store_path)))
    loaders = [DataLoader(data, batch_size=None, sampler=KEYS, num_workers=workers) for data in (first, second)]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one["latent"], other["latent"])


def test_two_stores_of_one_file_in_the_same_worker(store_path: Path) -> None:
    class Both(Dataset[list[torch.Tensor]]):
        datasets = PredictBatches(Store(store_path)), PredictBatches(Store(store_path))

        def __getitem__(self, key: Key) -> list[torch.Tensor]:
            return [dataset[key]["id"] for dataset in self.datasets]

    both = Both()
    both[KEYS[0]]
    for one, other in DataLoader(both, batch_size=None, sampler=KEYS, num_workers=1):
        assert torch.equal(one, other)
