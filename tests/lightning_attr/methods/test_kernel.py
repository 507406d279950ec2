"""Ridge regression on features, against a dense solve."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.methods import kernel
from lightning_attr.methods.kernel import gram, ridge_scores, weighed_ridge_scores

SIZES = [3, 4, 1]


def dense_scores(query_QR: Tensor, features_NR: Tensor, regularisation: float) -> Tensor:
    shift = regularisation * features_NR.square().sum(1).mean() * torch.eye(features_NR.shape[1])
    return query_QR @ torch.linalg.inv(features_NR.T @ features_NR + shift) @ features_NR.T


def random_features(draws: int, width: int) -> tuple[Tensor, Tensor]:
    """Features of two queries [D, Q, R] and of eight samples [D, N, R]; each draw has a scale of its own."""
    generator = torch.Generator().manual_seed(width)
    scale = torch.arange(1, draws + 1)[:, None, None]
    return tuple(  # type: ignore[return-value]
        scale * torch.randn(draws, count, width, generator=generator, dtype=torch.float64) for count in (2, sum(SIZES))
    )


def as_chunks(features_DNR: Tensor) -> tuple[Tensor, ...]:
    return torch.cat([*features_DNR], dim=1).split(SIZES)  # type: ignore[no-any-return, no-untyped-call]


class Counted(Sequence[Tensor]):
    """Chunks that count how often one is read."""

    def __init__(self, chunks: Sequence[Tensor]) -> None:
        self.chunks = chunks
        self.read = 0

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        self.read += index < len(self.chunks)
        return self.chunks[index]


@pytest.mark.parametrize("width", [3, 8, 20], ids=["features' side", "square", "samples' side"])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("at_once", [1, 2**27], ids=["draw by draw", "all draws at once"])
def test_both_sides_equal_a_dense_solve(width: int, draws: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "NUMBERS_AT_ONCE", at_once)
    query, features = random_features(draws, width)
    found = list(ridge_scores(query, as_chunks(features), 0.1))
    assert [one.shape for one in found] == [(2, size) for size in SIZES]
    expected = torch.stack([dense_scores(*pair, 0.1) for pair in zip(query, features, strict=True)]).sum(0)
    torch.testing.assert_close(torch.cat(found, dim=1).double(), expected, rtol=1e-5, atol=1e-6)


def test_gram_in_blocks() -> None:
    _, features = random_features(3, 20)
    torch.testing.assert_close(gram(as_chunks(features), SIZES, draws=3), features @ features.mT)


def test_chunks_are_read_few_times() -> None:
    """For sizes, moments and scores; not once more for every draw."""
    query, features = random_features(6, 3)
    chunks = Counted(as_chunks(features))
    list(ridge_scores(query, chunks, 0.1))
    assert chunks.read <= 3 * len(chunks)


@pytest.mark.parametrize("width", [3, 20])
def test_features_that_depend_on_each_other(width: int) -> None:
    query, features = random_features(1, width)
    features[:, :, 1] = 0  # a feature that no sample has
    features[:, 1] = 0  # a sample that has no feature
    with pytest.raises(UserError, match=r"method.regularisation: found 0.0, expected more"):
        list(ridge_scores(query, as_chunks(features), 0.0))
    assert torch.cat(list(ridge_scores(query, as_chunks(features), 0.1))[:1]).isfinite().all()


@pytest.mark.parametrize("width", [3, 20])
def test_features_that_are_not_finite(width: int) -> None:
    query, features = random_features(1, width)
    features[0, 2, 1] = torch.nan
    with pytest.raises(UserError, match="features: found some that are not finite"):
        list(ridge_scores(query, as_chunks(features), 0.1))


@pytest.mark.parametrize("width", [3, 20], ids=["features' side", "samples' side"])
def test_weights_count_as_copies_do(width: int) -> None:
    query, features = random_features(2, width)
    weights = torch.tensor([1, 3, 2, 1, 1, 4, 1, 2])
    found = torch.cat(list(weighed_ridge_scores(query, as_chunks(features), 0.1, weights.split(SIZES))), dim=1)
    of_each = torch.arange(8).repeat_interleave(weights)
    copies = features[:, of_each]
    expected = torch.stack([dense_scores(*pair, 0.1) for pair in zip(query, copies, strict=True)]).sum(0)
    summed = torch.zeros(2, 8, dtype=torch.float64).index_add(1, of_each, expected)
    torch.testing.assert_close(found.double(), summed, rtol=1e-5, atol=1e-6)


def test_weights_of_one_change_no_bit() -> None:
    query, features = random_features(2, 3)
    ones = torch.ones(8, dtype=torch.int64).split(SIZES)  # type: ignore[no-untyped-call]
    for found, expected in zip(
        weighed_ridge_scores(query, as_chunks(features), 0.1, ones),
        ridge_scores(query, as_chunks(features), 0.1),
        strict=True,
    ):
        assert torch.equal(found, expected)
