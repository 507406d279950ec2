from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import Exclude, Store, Subset, kept_positions
from lightning_attr.artifacts.scores import Scores, TopScores
from lightning_attr.errors import StoreError, UserError


@pytest.fixture
def store(store_path: Path) -> Store:
    return Store(store_path)


@pytest.fixture
def score_files(tmp_path: Path, store: Store) -> list[str]:
    """Query 1 likes small ids, query 2 large ones; the second file has query 3, which likes small ones, too."""
    ids = torch.from_numpy(store.ids.copy())
    falling = -ids.float()
    Scores(torch.stack([falling, -falling]), torch.tensor([1, 2]), ids, "random").save(tmp_path / "a")
    Scores(falling[None], torch.tensor([3]), ids, "random").save(tmp_path / "b")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def left_out(store: Store, exclude: Exclude, subset: Subset | None = None) -> list[int]:
    removed = np.setdiff1d(kept_positions(store, None, subset), kept_positions(store, exclude, subset))
    return store.ids[removed].tolist()  # type: ignore[no-any-return]


def test_everything(store: Store) -> None:
    assert kept_positions(store).tolist() == list(range(150))


def test_exclude_ids(store: Store) -> None:
    assert left_out(store, Exclude(ids=[30, 0, 30])) == [0, 30]
    with pytest.raises(StoreError, match="found no sample 31"):
        kept_positions(store, Exclude(ids=[30, 31]))


def test_exclude_scores(store: Store, score_files: list[str]) -> None:
    first, second = score_files
    assert left_out(store, Exclude(scores=first, query=1, top=3)) == [0, 3, 6]
    assert left_out(store, Exclude(scores=first, query=[2], top=2)) == [444, 447]
    assert left_out(store, Exclude(scores=first, top=3)) == [0, 3, 447]  # the queries in turn
    assert left_out(store, Exclude(scores=first, top=4)) == [0, 3, 444, 447]
    assert left_out(store, Exclude(scores=[first, second], query=[1, 3], top=2)) == [0, 3]
    with pytest.raises(UserError, match=r"no query 9 .* expected one of \[1, 2, 3\]"):
        kept_positions(store, Exclude(scores=[first, second], query=[1, 9], top=2))
    with pytest.raises(UserError, match="found 151, expected at most 150"):
        kept_positions(store, Exclude(scores=first, query=1, top=151))
    with pytest.raises(UserError, match="no sample left"):
        kept_positions(store, Exclude(scores=first, query=1, top=150))


@pytest.mark.parametrize("choice", ["exclude", "subset"])
def test_scores_of_another_store(store: Store, tmp_path: Path, choice: str) -> None:
    """The same ids mean other images there."""
    ids = torch.from_numpy(store.ids.copy())
    path, choose = str(tmp_path / "a"), {"exclude": Exclude, "subset": Subset}[choice]
    for digest in (store.digest, "xxh3-128:other"):
        Scores(-ids[None].float(), torch.tensor([1]), ids, "random", {"digests": {"store": digest}}).save(path)
        settings: dict[str, Exclude | Subset] = {choice: choose(scores=path, top=3)}
        if digest == store.digest:
            assert len(kept_positions(store, **settings)) in (3, 147)  # type: ignore[arg-type]
        else:
            with pytest.raises(UserError, match="made from store of digest xxh3-128:other, expected"):
                kept_positions(store, **settings)  # type: ignore[arg-type]


def test_exclude_at_random(store: Store) -> None:
    first = left_out(store, Exclude(random=20))
    assert len(first) == 20
    assert first == left_out(store, Exclude(random=20))
    assert set(left_out(store, Exclude(random=5))) < set(first)
    assert first != left_out(store, Exclude(random=20, seed=1))
    with pytest.raises(UserError, match="found 151, expected at most 150"):
        kept_positions(store, Exclude(random=151))


def test_subset(store: Store) -> None:
    assert kept_positions(store, subset=Subset(ids=[9, 3, 9])).tolist() == [1, 3]
    assert kept_positions(store, subset=Subset(first=4)).tolist() == [0, 1, 2, 3]
    half, other = (kept_positions(store, subset=Subset(fraction=0.5, seed=seed)).tolist() for seed in (0, 1))
    assert len(half) == len(other) == 75
    assert half != other
    assert half == sorted(half)
    with pytest.raises(UserError, match="found 151, expected at most 150"):
        kept_positions(store, subset=Subset(first=151))
    with pytest.raises(StoreError, match="found no sample 4"):
        kept_positions(store, subset=Subset(ids=[3, 4]))


def test_a_subset_of_candidates(store: Store, score_files: list[str], tmp_path: Path) -> None:
    """The union of the queries' tops, not so many in all."""

    def kept(scores: str | list[str], top: int) -> list[int]:
        return store.ids[kept_positions(store, subset=Subset(scores=scores, top=top))].tolist()  # type: ignore[no-any-return]

    first, second = score_files
    assert kept(first, 2) == [0, 3, 444, 447]
    assert kept(second, 2) == [0, 3]
    assert kept(score_files, 3) == [0, 3, 6, 441, 444, 447]
    assert len(kept(first, 150)) == 150
    top = TopScores(torch.tensor([[9, 6]]), torch.tensor([[2.0, 1.0]]), torch.tensor([4]), "random")
    top.save(tmp_path / "top")
    assert kept([second, str(tmp_path / "top")], 2) == [0, 3, 6, 9]
    assert left_out(store, Exclude(scores=str(tmp_path / "top"), top=1)) == [9]
    assert left_out(store, Exclude(random=1), Subset(scores=first, top=1)) in ([0], [447])
    with pytest.raises(UserError, match=r"subset.top of .*top: found 3, expected at most 2"):
        kept(str(tmp_path / "top"), 3)


def test_exclude_from_a_subset(store: Store) -> None:
    subset = Subset(first=10)
    assert len(left_out(store, Exclude(random=4), subset)) == 4
    assert left_out(store, Exclude(ids=[3, 300]), subset) == [3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exclude(), "exclude: found nothing, expected exactly one of ids, scores, random"),
        (lambda: Exclude(ids=[1], random=3), "exclude: found ids and random"),
        (lambda: Exclude(scores="a"), "expected both or neither"),
        (lambda: Exclude(ids=[1], top=3), "expected both or neither"),
        (lambda: Exclude(ids=[1], query=3), "expected it with scores only"),
        (lambda: Exclude(random=0), "exclude.random: found 0"),
        (lambda: Subset(), "subset: found nothing"),
        (lambda: Subset(fraction=0.5, first=3), "subset: found fraction and first"),
        (lambda: Subset(fraction=1.5), "subset.fraction: found 1.5"),
        (lambda: Subset(first=0), "subset.first: found 0"),
        (lambda: Subset(scores="a"), "expected both or neither"),
        (lambda: Subset(first=3, top=2), "expected both or neither"),
        (lambda: Subset(scores="a", top=0), "subset.top: found 0"),
        (lambda: Subset(scores="a", top=1, first=3), "subset: found first and scores"),
    ],
)
def test_contradictions(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
