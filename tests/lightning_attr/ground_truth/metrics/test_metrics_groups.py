"""Rankings of groups, and what chance reaches, against all orders one by one."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from lightning_attr.ground_truth.metrics.functional import average_precision
from lightning_attr.ground_truth.metrics.groups import average_precision_by_chance, top_1, top_1_by_chance


@pytest.mark.parametrize("right", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_chance_is_the_mean_over_all_orders(right: list[int]) -> None:
    orders = torch.tensor(list(permutations(range(5)))).double()
    mask = torch.zeros(1, 5, dtype=torch.bool)
    mask[0, right] = True
    expected = average_precision(orders, mask.expand(len(orders), -1)).mean()
    assert average_precision_by_chance(mask).item() == pytest.approx(expected.item())
    assert top_1_by_chance(mask).item() == pytest.approx(top_1(orders, mask.expand(len(orders), -1)).mean().item())


def test_what_is_not_known() -> None:
    scores = torch.tensor([[1.0, torch.nan], [1.0, 2.0]])
    right = torch.tensor([[True, False], [False, False]])
    assert top_1(scores, right).isnan().all()
    for chance in (top_1_by_chance, average_precision_by_chance):
        assert chance(right).isnan().tolist() == [False, True]
