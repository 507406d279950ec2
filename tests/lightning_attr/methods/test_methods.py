"""Methods that score in one pass, against plain loops."""

import pytest
import torch
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.losses import delta_scores
from lightning_attr.methods import Random
from lightning_attr.methods.base import Context


def random_scores(seed: int, query_id: list[int], sample_id: list[int]) -> Tensor:
    method = Random(seed)
    context = Context({"id": torch.tensor(query_id)}, store=None, query_store=None, model=None, device=None)  # type: ignore[arg-type]
    method.prepare(context)
    (scores,) = method.score([method.measure({"id": torch.tensor(sample_id)})])
    return scores


def test_random_scores_depend_on_ids_alone() -> None:
    scores = random_scores(1, [0, 1, 2], [5, 7, 8, 20])
    assert scores.shape == (3, 4)
    assert torch.equal(random_scores(1, [2, 0], [20, 5, 8]), scores[[2, 0]][:, [3, 0, 2]])
    assert len(set(scores.flatten().tolist())) == 12
    assert not torch.equal(random_scores(2, [0, 1, 2], [5, 7, 8, 20]), scores)


def test_methods_know_their_names_and_settings() -> None:
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
