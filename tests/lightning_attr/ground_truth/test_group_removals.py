"""Leave-group-out against a truth that is known, and against sums made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from synthetic_packs import World

from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.commands.evaluate import main
from lightning_attr.errors import UserError
from lightning_attr.ground_truth import as_json, evaluate
from lightning_attr.ground_truth.pack import Pack
from lightning_attr.ground_truth.records import Evaluated, from_json

GROUPS = {f"artist {name}": list(range(5 * place, 5 * place + 5)) for place, name in enumerate("abcdefgh")}


@pytest.fixture(scope="module")
def world() -> World:
    made = World(noise=0.1)
    made.groups("artist", GROUPS, seeds=2)
    made.groups("cluster", {"of three": [0, 7, 9]})
    return made


@pytest.fixture(scope="module")
def pack(world: World) -> Pack:
    return world.pack()


def test_each_group_has_its_loss_change_beside_random_removal(pack: Pack) -> None:
    found = evaluate(pack, {}).groups
    assert {(each.grouping, each.group) for each in found} == {
        *(("artist", name) for name in GROUPS),
        ("cluster", "of three"),
    }
    changes = pack.loss_changes
    for each in found:
        rows = [row for row, model in enumerate(pack.models) if model.group == each.group]
        random = [row for row, m in enumerate(pack.models) if m.method == "random" and m.k == each.images]
        expected, by_chance = changes[rows].mean(0), changes[random].mean(0)
        assert each.models == len(rows)
        assert each.loss_change.estimate == pytest.approx(expected.mean().item())
        assert each.random.estimate == pytest.approx(by_chance.mean().item())
        assert each.difference.estimate == pytest.approx((expected - by_chance).mean().item())
        assert each.difference.low <= each.difference.estimate <= each.difference.high
        assert [change.loss_change for change in each.queries] == expected.tolist()
    means = [each.loss_change.estimate for each in found if each.grouping == "artist"]
    assert means == sorted(means, reverse=True)


def test_true_scores_foretell_the_loss_changes_and_others_do_not(world: World, pack: Pack) -> None:
    noise = torch.randn(world.influence.shape, generator=torch.Generator().manual_seed(5))
    scores = {"truth": world.scores("truth", world.influence), "noise": world.scores("noise", noise[:4])}
    truth, chance = (each for each in evaluate(pack, scores).group_rankings if each.grouping == "artist")
    assert (truth.method, truth.queries, truth.reduction) == ("truth", 6, "sum")
    assert (chance.method, chance.queries) == ("noise", 4)
    assert truth.correlation.low > 0.9
    assert chance.correlation.low < 0.9
    changes = pack.loss_changes
    best = []
    for query in range(6):
        sums = {name: float(world.influence[query, places].sum()) for name, places in GROUPS.items()}
        first = max(sums, key=lambda name: sums[name])
        rows = [row for row, model in enumerate(pack.models) if model.group == first]
        best.append(float(changes[rows, query].mean()))
    assert truth.loss_change.estimate == pytest.approx(sum(best) / 6)
    assert truth.loss_change.estimate > chance.loss_change.estimate


def test_groups_and_their_yardsticks_do_not_enter_what_methods_are_compared_by() -> None:
    made = World()
    made.groups("artist", {"a": [0, 1, 2], "b": [3, 4, 5, 6, 7, 8, 9, 10]})
    assert evaluate(made.pack(), {}).removals == evaluate(made.pack(), {}).loss_changes == []
    made.top("truth", made.influence)
    made.random(1)
    evaluated = evaluate(made.pack(), {})
    assert {(each.method, each.k) for each in evaluated.removals} == {
        (method, k) for method in ("truth", "random") for k in (2, 8)
    }
    assert {(point.method, point.k) for point in evaluated.loss_changes} == {
        (method, k) for method in ("truth", "random") for k in (2, 8)
    }


def test_a_pack_keeps_its_groups_and_the_command_shows_them(
    world: World, pack: Pack, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pack.save(tmp_path / "pack")
    assert Pack.load(tmp_path / "pack").models == pack.models
    scores = world.scores("truth", world.influence, digests={"queries": "q", "store": "s"})
    scores.save(tmp_path / "scores.safetensors")
    main([str(tmp_path / "pack"), str(tmp_path / "scores.safetensors"), "--json", str(tmp_path / "numbers.json")])
    printed = capfd.readouterr().out
    for words in ("Leave-group-out", "artist: artist a", "truth, sum by artist", "cluster: of three"):
        assert words in printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    from_json("numbers", numbers, Evaluated)
    assert len(numbers["groups"]) == 9
    del numbers["groups"], numbers["group_rankings"]  # as evaluations wrote them that knew no groups
    from_json("numbers", numbers, Evaluated)


def test_models_without_groups_are_kept_as_before(tmp_path: Path) -> None:
    made = World()
    made.random(1)
    made.pack().save(tmp_path / "pack")
    manifest = read_record(tmp_path / "pack.json", {}, "manifest")
    assert manifest["models"][0].keys() == {"name", "method", "query", "k", "seed"}
    manifest["models"][0]["group"] = 3
    write_record(tmp_path / "pack.json", manifest)
    with pytest.raises(UserError, match=r"models\[0\]: found group 3, expected a name or none"):
        Pack.load(tmp_path / "pack")


def test_one_query_has_no_interval() -> None:
    made = World()
    made.groups("artist", {"a": [0, 1, 2]})
    lone = made.pack().of_queries([0])
    (found,) = evaluate(lone, {}).groups
    assert found.loss_change.low != found.loss_change.low
    models = [model for model in lone.models if model.method == "random"]
    assert len(models) == 1
    assert found.random.estimate == pytest.approx(lone.loss_changes[1].mean().item())
    assert as_json(found)["queries"][0]["query"] == 0
