"""Reading in other processes, however they start, and two datasets on one file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datamodules import Store, StoreError
from datamodules.loading import PredictBatches, TrainBatches
from torch.utils.data import ConcatDataset, DataLoader

from tests.datamodules.conftest import write_store
from tests.datamodules.test_store import damage

KEYS = [(0, np.arange(start, start + 10)) for start in range(0, 150, 10)]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_what_the_parent_reads(store_path: Path, method: str) -> None:
    dataset = TrainBatches(Store(store_path), seed=3)
    expected = [dataset[key] for key in KEYS]  # the file is open here before the workers start
    loader = DataLoader(dataset, batch_size=None, sampler=KEYS, num_workers=2, multiprocessing_context=method)
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
    class Both(ConcatDataset):  # type: ignore[type-arg]
        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            return [data[key]["id"] for data in self.datasets]

    both = Both([PredictBatches(Store(store_path)), PredictBatches(Store(store_path))])
    both[KEYS[0]]
    for one, other in DataLoader(both, batch_size=None, sampler=KEYS, num_workers=1):
        assert torch.equal(one, other)


def test_damage_found_in_a_worker(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.lmdb", 20)
    damage(path, Store(path).read("latent", [5]).tobytes())
    loader = DataLoader(PredictBatches(Store(path)), batch_size=None, sampler=[(0, np.arange(20))], num_workers=1)
    with pytest.raises(StoreError, match="damaged, latent of"):
        list(loader)
