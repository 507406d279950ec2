"""Methods that score in one pass, against plain loops."""

import pytest
import torch
from torch import Tensor

from datamodules.errors import UserError
from lightning_attr.methods import Random, Similarity
from lightning_attr.methods.loss_deltas import delta_scores


@pytest.fixture
def queries() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "id": torch.arange(3),
        "latent": torch.randn(3, 1, 2, 4, 4, generator=generator),
        "text": torch.randn(3, 1, 5, 6, generator=generator),
    }


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Of sample 1, only the first caption is one; the other is padding."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(4, 2, 5, 6, generator=generator)
    text[1, 1] = 0
    return {
        "id": torch.tensor([5, 7, 8, 20]),
        "latent": torch.randn(4, 2, 2, 4, 4, generator=generator),
        "text": text,
        "captions": torch.tensor([2, 1, 2, 2]),
    }


@pytest.mark.parametrize("feature", ["latent", "text"])
def test_similarity_is_the_largest_cosine(queries: dict[str, Tensor], batch: dict[str, Tensor], feature: str) -> None:
    scores = Similarity(feature).score(queries, batch)  # type: ignore[arg-type]
    assert scores.shape == (3, 4)
    for row, query in enumerate(queries[feature][:, 0]):
        for column, sample in enumerate(batch[feature]):
            rows = sample[: int(batch["captions"][column])] if feature == "text" else sample
            cosines = [torch.cosine_similarity(query.flatten(), one.flatten(), dim=0) for one in rows]
            torch.testing.assert_close(scores[row, column], torch.stack(cosines).max())


def test_a_sample_is_most_similar_to_itself(batch: dict[str, Tensor]) -> None:
    queries = {"id": batch["id"], "latent": batch["latent"][:, 1:]}
    assert Similarity().score(queries, batch).argmax(1).tolist() == [0, 1, 2, 3]


def test_random_scores_depend_on_ids_alone(queries: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
    scores = Random(seed=1).score(queries, batch)
    order = torch.tensor([3, 0, 2, 1])
    assert torch.equal(Random(seed=1).score(queries, {"id": batch["id"][order]}), scores[:, order])
    assert len(set(scores.flatten().tolist())) == 12
    assert not torch.equal(Random(seed=2).score(queries, batch), scores)


def test_methods_know_their_names_and_settings() -> None:
    assert (Similarity("text").name, Similarity("text").settings()) == ("similarity-text", {"feature": "text"})
    assert (Random(3).name, Random(3).settings()) == ("random", {"seed": 3})


def test_delta_scores() -> None:
    before = torch.tensor([[[1.0, 2.0], [1.0, 1.0]], [[0.0, 0.0], [4.0, 4.0]]])
    after = torch.tensor([[[2.0, 4.0], [1.0, 2.0]], [[0.0, -1.0], [4.0, 2.0]]])
    assert delta_scores(before, after).tolist() == [1.5, -0.5]
    assert delta_scores(before, after, "mean").tolist() == [1.0, -0.75]
    with pytest.raises(UserError, match="not finite"):
        delta_scores(before, after * torch.inf)
    with pytest.raises(UserError, match="expected"):
        delta_scores(before, after[:1])


def test_delta_scores_of_small_changes_keep_their_digits() -> None:
    """Sums of many float32 losses would lose what unlearning changed."""
    before = torch.full((1, 1, 1000), 1.0)
    after = before.clone()
    after[0, 0, 0] += 1e-6
    assert delta_scores(before, after).item() == pytest.approx((after - before).double().mean().item(), rel=1e-6)
