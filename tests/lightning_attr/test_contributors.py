"""Which contributors, how much, how sure: against sums made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from datamodules.grouping import NONE, Groups
from lightning_attr.artifacts.scores import Scores
from lightning_attr.contributors import as_json, contributors

#: Of seven samples; the last belongs to none.
GROUPS = Groups("artist", (NONE, "moro", "velin"), np.array([1, 1, 1, 2, 2, 2, 0]), np.arange(7))
VALUES = torch.tensor([[1.0, 0, 1, 3, 2, 1, 50], [2.0, 1, 1, 0, 1, 2, 50], [9.0, 0, 0, 1, 1, 1, 50]])


def scores(values: torch.Tensor, method: str = "influence") -> Scores:
    return Scores(values, torch.arange(len(values)), torch.arange(7), method)


def test_groups_by_their_mean_over_queries() -> None:
    first, second, none = contributors(GROUPS, scores(VALUES))
    assert (first.group, second.group, none.group) == ("moro", "velin", NONE)  # though its sum is the largest
    assert first.score.estimate == pytest.approx((2 + 4 + 9) / 3)
    assert second.score.estimate == pytest.approx((6 + 3 + 3) / 3)
    assert first.score.low < first.score.estimate < first.score.high
    assert (first.first, second.first, none.first) == (2, 1, 0)
    assert (first.images, none.images) == (3, 1)
    assert first.share is None
    assert none.ranks == {}


def test_ranks_are_those_of_the_other_methods_means() -> None:
    other = VALUES.flip(1).clone()
    other[:, 1:4] = 5.0
    found = contributors(GROUPS, scores(VALUES), {"similarity": scores(other, "similarity-latent")})
    means = {"moro": float(other[:, :3].mean()), "velin": float(other[:, 3:6].mean())}
    ranked = sorted(means, key=lambda name: -means[name])
    assert {each.group: each.ranks["similarity"] for each in found if each.ranks} == {
        name: rank for rank, name in enumerate(ranked, start=1)
    }


def test_shares_add_up_and_one_query_has_no_interval() -> None:
    shares = torch.tensor([[0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1]])
    found = contributors(GROUPS, scores(VALUES[:1]), shares=shares)
    assert sum(each.share.estimate for each in found if each.share) == pytest.approx(0.8)
    assert found[0].group == "velin"
    assert math.isnan(found[0].score.low)
    record = as_json(found[0])
    assert record["share"] == pytest.approx(0.4)
    assert (record["interval"], record["share_interval"], record["score"]) == (None, None, 6.0)


def test_what_is_not_known_is_null() -> None:
    found = contributors(GROUPS, scores(torch.ones(1, 7)))
    assert {as_json(each)["beyond_chance"] for each in found} == {None}
