"""LDS at small removals, and removals under several training seeds, against sums made by hand and scipy."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from synthetic_packs import QUERIES, SAMPLES, World

from lightning_attr.ground_truth import as_json, evaluate
from lightning_attr.ground_truth.pack import Model
from lightning_attr.ground_truth.records import Evaluated, from_json
from lightning_attr.ground_truth.tables import lds_table

SEEDS, COUNT = 2, 6


@pytest.fixture(scope="module")
def world() -> World:
    made = World(noise=0.3)
    made.subsets(8)
    for k, count in ((4, COUNT), (8, COUNT), (12, 3)):
        for number in range(count):
            mask = torch.rand(SAMPLES, generator=made.generator).argsort() >= k
            for seed in range(SEEDS):
                name = f"random/k-{k}/{number}" if seed == 0 else f"seed-{seed}/random/k-{k}/{number}"
                made.add(Model(name, "random", None, k, seed), mask, 0.1)
    made.full(1)
    return made


def test_lds_at_each_size_of_removal(world: World) -> None:
    pack = world.pack()
    found = evaluate(pack, {"truth": world.scores("truth", world.influence)}).small_removals
    assert [(each.k, each.subsets, each.repeats) for each in found] == [(4, COUNT, SEEDS), (8, COUNT, SEEDS)]  # not 12
    for each in found:
        rows = [row for row, model in enumerate(pack.models) if model.method == "random" and model.k == each.k]
        losses = pack.losses[rows].double().mean(2).reshape(COUNT, SEEDS, -1).mean(1)
        predicted = pack.masks[rows[::SEEDS]].double() @ world.influence.double().T
        by_hand = [spearmanr(predicted[:, query], -losses[:, query]).statistic for query in range(losses.shape[1])]
        assert each.scored[0].lds.interval.estimate == pytest.approx(sum(by_hand) / len(by_hand))
        assert each.ceiling is not None
        assert 0.5 < each.ceiling.estimate <= 1


def test_a_model_is_compared_with_that_of_all_samples_and_its_own_seed(world: World) -> None:
    pack = world.pack()
    full = next(row for row, model in enumerate(pack.models) if model.method == "full")
    changes = pack.loss_changes
    for row, model in enumerate(pack.models):
        before = pack.losses[full] if model.seed == 1 and row != full else pack.original_losses
        torch.testing.assert_close(changes[row], (pack.losses[row].double() - before.double()).mean(1))


def test_leave_k_out_is_the_mean_over_training_seeds() -> None:
    world = World(noise=0.3)
    world.top("truth", world.influence, seeds=3)
    world.full(2)
    pack = world.pack()
    before = {model.seed: row for row, model in enumerate(pack.models) if model.method == "full"}
    for found in evaluate(pack, {}).removals:
        by_hand = []
        for column, query in enumerate(pack.query_id.tolist()):
            rows = [r for r, model in enumerate(pack.models) if (model.query, model.k) == (query, found.k)]
            assert len(rows) == 3
            original = [pack.original_losses[column], *(pack.losses[before[seed], column] for seed in (1, 2))]
            after = pack.losses[rows, column].double().mean(1)
            by_hand.append((after - torch.stack(original).double().mean(1)).mean())
        assert found.loss_change.interval.estimate == pytest.approx(torch.stack(by_hand).mean().item())
        assert (found.models, found.queries) == (3 * QUERIES, QUERIES)


def test_both_are_in_the_table_and_in_json(world: World) -> None:
    found = evaluate(world.pack(), {"truth": world.scores("truth", world.influence)})
    table = lds_table(found)
    assert [column.header for column in table.columns] == [
        "method", "LDS", "share", "without 4", "without 8", "queries",
    ]  # fmt: skip
    read = Evaluated(**from_json("evaluation", as_json(found), Evaluated))
    assert [each["k"] for each in read.small_removals] == [4, 8]  # type: ignore[index]
