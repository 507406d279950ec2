from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from small_stores import damage, write_store

from datamodules import Store
from datamodules.hashing import choices, shuffled
from datamodules.loading import Keys, LatentLoader, PredictBatches, Share, TrainBatches
from lightning_attr.errors import StoreError, UserError


def train_loader(path: Path, batch_size: int = 16, workers: int = 0, share: Share | None = None) -> LatentLoader:
    store = Store(path)
    keys = Keys(store.ids, np.arange(len(store)), batch_size, "shuffled", seed=1, share=share)
    return LatentLoader(TrainBatches(store, seed=1), keys, workers)


def by_id(loader: LatentLoader) -> dict[int, dict[str, torch.Tensor]]:
    return {
        int(id): {name: values[place] for name, values in batch.items()}
        for batch in loader
        for place, id in enumerate(batch["id"])
    }


def test_train_batch(store_path: Path) -> None:
    store = Store(store_path)
    batches = list(train_loader(store_path))
    assert [len(batch["id"]) for batch in batches] == [16] * 9 + [6]
    assert sorted(torch.cat([batch["id"] for batch in batches]).tolist()) == store.ids.tolist()
    for batch in batches:
        positions = store.positions(batch["id"].numpy())
        latent = store.read("latent", positions, batch["view"].numpy())
        text = store.read("text", positions, batch["caption"].numpy())
        assert torch.equal(batch["latent"], torch.from_numpy(latent).float())
        assert torch.equal(batch["text"], torch.from_numpy(text).float())
        assert (batch["caption"].numpy() < store.caption_counts[positions]).all()
        assert {name: values.dtype for name, values in batch.items()} == {
            "latent": torch.float32, "text": torch.float32,
            "id": torch.int64, "showing": torch.int64, "view": torch.int64, "caption": torch.int64,
        }  # fmt: skip


def test_predict_batch(store_path: Path) -> None:
    store = Store(store_path)
    loader = LatentLoader(PredictBatches(store), Keys(store.ids, np.arange(150), 64, "stored"))
    batches = list(loader)
    assert torch.cat([batch["id"] for batch in batches]).tolist() == store.ids.tolist()
    assert batches[0]["latent"].shape == (64, 2, 3, 4, 4)
    assert batches[0]["text"].shape == (64, 3, 5, 8)
    for batch in batches:
        for text, count, id in zip(batch["text"], batch["captions"], batch["id"], strict=True):
            assert count == 1 + id % 3
            assert text[:count].abs().sum((1, 2)).min() > 0
            assert text[count:].abs().sum() == 0


@pytest.mark.parametrize(("batch_size", "workers", "world_size"), [(7, 0, 1), (150, 0, 1), (16, 2, 1), (16, 0, 3)])
def test_what_a_sample_shows_depends_on_seed_epoch_and_id_only(
    store_path: Path, batch_size: int, workers: int, world_size: int
) -> None:
    expected = by_id(train_loader(store_path))
    found: dict[int, dict[str, torch.Tensor]] = {}
    for rank in range(world_size):
        found |= by_id(train_loader(store_path, batch_size, workers, Share(rank, world_size)))
    assert found.keys() == expected.keys()
    for id, item in expected.items():
        assert all(torch.equal(item[name], found[id][name]) for name in item)


def test_epochs_differ(store_path: Path) -> None:
    loader = train_loader(store_path)
    orders, views = [], []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        found = by_id(loader)
        orders.append(list(found))
        views.append([int(found[id]["view"]) for id in sorted(found)])
    assert orders[0] == orders[2] != orders[1]
    assert views[0] == views[2] != views[1]


def test_choices_are_even() -> None:
    ids = np.arange(30_000) * 3
    for count in (2, 3, 5):
        shares = np.bincount(choices(ids, count, "view", 0, 0), minlength=count) / len(ids)
        assert np.abs(shares - 1 / count).max() < 4 * np.sqrt(1 / count / len(ids))
    first, second = choices(ids, 2, "view", 0, 0), choices(ids, 2, "view", 0, 1)
    assert abs((first == second).mean() - 0.5) < 0.02
    assert (choices(ids[:4], np.array([0, 1, 0, 1]), "caption", 0, 0) == 0).all()


def test_a_subset_keeps_the_order_of_the_whole() -> None:
    ids = np.arange(1000)
    some = ids[ids % 7 != 0]
    whole = [id for id in ids[shuffled(ids, "order", 0, 0)] if id % 7 != 0]
    assert some[shuffled(some, "order", 0, 0)].tolist() == whole


@pytest.mark.parametrize("order", ["shuffled", "stored"])
@pytest.mark.parametrize(
    ("samples", "world_size", "batch_size"),
    [(10, 1, 4), (10, 3, 4), (9, 4, 2), (5, 4, 1), (7, 2, 3), (8, 8, 3), (12, 4, 3)],
)
def test_ranks_share_every_sample_in_equally_many_batches(
    order: Literal["shuffled", "stored"], samples: int, world_size: int, batch_size: int
) -> None:
    positions = np.arange(100, 100 + samples)
    ranks = [
        list(Keys(positions * 2, positions, batch_size, order, 0, Share(rank, world_size)))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    sizes = [len(batch) for batches in ranks for _, batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size + (world_size > 1)
    handed_out = np.concatenate([batch for batches in ranks for _, batch in batches])
    assert sorted(handed_out) == positions.tolist()
    if order == "stored":
        assert handed_out.tolist() == positions.tolist()


def test_more_ranks_than_samples() -> None:
    ranks = [Keys(np.arange(2), np.arange(2), 4, "stored", 0, Share(rank, 3)) for rank in range(3)]
    assert [len(keys) for keys in ranks] == [len(list(keys)) for keys in ranks] == [1, 1, 0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4, 10])
def test_resume_within_an_epoch(store_path: Path, workers: int, stop: int) -> None:
    loader = train_loader(store_path, workers=workers)
    loader.sampler.set_epoch(5)
    expected = [batch["id"].tolist() for batch in loader]
    loader = train_loader(store_path, workers=workers)
    loader.sampler.set_epoch(5)
    iterator = iter(loader)
    before = [next(iterator)["id"].tolist() for _ in range(stop)]
    state = loader.state_dict()
    del iterator
    resumed = train_loader(store_path, workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.sampler.set_epoch(5)
    assert before + [batch["id"].tolist() for batch in resumed] == expected
    assert [batch["id"].tolist() for batch in resumed] == expected  # the state is taken up once


def test_a_state_of_the_epoch_before_does_not_matter(store_path: Path) -> None:
    loader = train_loader(store_path)
    loader.load_state_dict(loader.state_dict() | {"epoch": 4, "batches": 10})
    loader.sampler.set_epoch(5)
    assert len(list(loader)) == 10


def test_a_state_of_another_order_is_refused(store_path: Path) -> None:
    loader = train_loader(store_path, batch_size=16)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(UserError, match="found batch_size 8, batches 19, expected batch_size 16, batches 10 as in the"):
        train_loader(store_path, batch_size=8).load_state_dict(loader.state_dict())


# torch takes five seconds to stop a worker that had an error
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_damage_gives_one_plain_message(tmp_path: Path, workers: int) -> None:
    path = write_store(tmp_path / "a.lmdb", 40)
    damage(path, Store(path).read("text", [5])[0, 0].tobytes())
    store = Store(path)
    loader = LatentLoader(PredictBatches(store), Keys(store.ids, np.arange(40), 16, "stored"), workers)
    with pytest.raises(StoreError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{path}: damaged, text of position")
    assert "\n" not in str(caught.value)
