"""Samples that training shows several times an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import FIELDS, SCHEMA, samples, write_store

from datamodules import Field, Meta, Sample, Schema, StoreWriter
from datamodules.latents import LatentDataModule
from datamodules.loading import Keys, LatentLoader, Share, TrainBatches
from datamodules.selection import Exclude
from datamodules.store import Store
from lightning_attr.errors import StoreError

WEIGHTS = [3, 1, 2] * 10


def write_weighted(path: Path, field: Field = Field((1,), "int32"), weights: list[int] = WEIGHTS) -> Path:
    with StoreWriter(path, Schema({**FIELDS, "weight": field}, SCHEMA.encoders)) as writer:
        for one, weight in zip(samples(len(weights)), weights, strict=True):
            array = np.full(field.shape, weight, field.dtype)
            writer.write(Sample(one.meta, {**one.arrays, "weight": array}, one.thumb))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weighted(tmp_path_factory.mktemp("weights") / "a.lmdb")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("weights") / "b.lmdb", len(WEIGHTS))


def showings(path: Path, **settings: object) -> list[tuple[int, int, int, int]]:
    """Id, showing, view and caption of all that an epoch shows, in its order."""
    data = LatentDataModule(str(path), batch_size=7, seed=1, **settings)  # type: ignore[arg-type]
    names = ("id", "showing", "view", "caption")
    return [row for batch in data.train_dataloader() for row in zip(*(batch[name].tolist() for name in names))]  # noqa: B905


def test_an_epoch_shows_a_sample_as_often_as_its_weight(weighted: Path) -> None:
    found, store = showings(weighted), Store(weighted)
    assert Counter(id for id, *_ in found) == Counter(dict(zip(store.ids.tolist(), WEIGHTS, strict=True)))
    assert len({showing for _, showing, *_ in found}) == sum(WEIGHTS) == len(found)
    several = [{(view, caption) for id, _, view, caption in found if id == sample} for sample in store.ids[::3]]
    assert any(len(choices) > 1 for choices in several)  # each showing has a view and a caption of its own


def test_first_showings_are_what_a_store_without_weights_shows(weighted: Path, plain: Path) -> None:
    """In the same order, of the same views and captions: weights only add to it."""
    assert [row for row in showings(weighted) if row[0] == row[1]] == showings(plain)


def test_the_data_that_are_left_come_in_the_same_order(weighted: Path) -> None:
    ids = Store(weighted).ids[[0, 4, 5]].tolist()
    assert showings(weighted, exclude=Exclude(ids=ids)) == [row for row in showings(weighted) if row[0] not in ids]


def test_in_stored_order_showings_lie_side_by_side(weighted: Path) -> None:
    expected = np.repeat(Store(weighted).ids, WEIGHTS).tolist()
    assert [id for id, *_ in showings(weighted, order="stored")] == expected


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_showings(weighted: Path, ranks: int) -> None:
    dataset = TrainBatches(Store(weighted), 1)
    of_rank = [
        [batch["showing"].tolist() for batch in LatentLoader(dataset, keys)]
        for keys in (Keys(dataset.ids, np.arange(60), 4, "shuffled", 1, Share(rank, ranks)) for rank in range(ranks))
    ]
    assert len({len(batches) for batches in of_rank}) == 1
    found = [showing for batches in of_rank for batch in batches for showing in batch]
    assert sorted(found) == sorted(dataset.ids.tolist())


def test_a_stop_within_an_epoch(weighted: Path) -> None:
    def loader() -> LatentLoader:
        return LatentDataModule(str(weighted), batch_size=7, seed=1).train_dataloader()

    stopped = loader()
    batches = iter(stopped)
    before = [next(batches)["showing"] for _ in range(4)]
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    after = [batch["showing"] for batch in resumed]
    assert torch.equal(torch.cat(before + after), torch.cat([batch["showing"] for batch in loader()]))


@pytest.mark.parametrize(
    ("field", "weight", "message"),
    [
        (Field((1,), "int32"), 0, "found a weight of 0, expected 1 to 10000"),
        (Field((1,), "int32"), 10_001, "found a weight of 10001"),
        (Field((2,), "int32"), 1, r"found weight \[2\] int32 of role None, expected \[1\] int32"),
        (Field((1,), "float32"), 1, "float32"),
        (Field((1,), "int32", "condition"), 1, "condition"),
    ],
)
def test_what_is_no_weight(tmp_path: Path, field: Field, weight: int, message: str) -> None:
    store = Store(write_weighted(tmp_path / "a.lmdb", field, [weight] * 3))
    with pytest.raises(StoreError, match=message):
        _ = store.weights


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ([{"groups": ["1_plain"]}, {"groups": ["10_style"], "weight": 10}], True),
        ([{"groups": ["plain"]}, {"groups": ["plain"], "weight": 10}], False),  # of somebody's own meaning
        ([{"groups": ["10_style"]}, {"groups": ["10_style"]}], False),
    ],
)
def test_weights_of_kohyas_folders_that_a_store_has_lost_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], attributes: list[dict[str, object]], told: bool
) -> None:
    """Once where it is trained on; all count once."""
    with StoreWriter(tmp_path / "old.lmdb", SCHEMA) as writer:
        for one, own in zip(samples(2), attributes, strict=True):
            writer.write(Sample(Meta(one.meta.id, one.meta.captions, None, None, own), one.arrays, one.thumb))
        writer.finish()
    assert len(showings(tmp_path / "old.lmdb")) == 2
    said = " ".join(capsys.readouterr().err.split())
    expected = "made before stores kept weights: sample 3, of weight 10, and all others count once; prepare the images"
    assert said.count(expected) == (1 if told else 0)
    assert told or not said
