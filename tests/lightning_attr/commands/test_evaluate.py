"""Scores against a pack whose truth is known, through the command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_packs import DIGESTS, KS, QUERIES, SAMPLES, World, world
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_attr.artifacts import read_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.evaluate import main
from lightning_attr.console import run
from lightning_attr.errors import UserError
from lightning_attr.ground_truth import evaluate
from lightning_attr.ground_truth.metrics.functional import linear_datamodelling_score
from lightning_attr.ground_truth.pack import Pack
from lightning_attr.ground_truth.removals import per_query


class Case:
    """A pack and scores of four methods on disk."""

    def __init__(self, root: Path, made: World) -> None:
        self.root = root
        self.made = made
        self.pack = made.pack()
        self.pack.save(root / "pack")
        truth = made.influence
        self.save("truth", truth)
        self.save("near", truth + 1e-3 * made.normal(*truth.shape))
        self.save("half", truth + 2 * made.normal(*truth.shape))
        self.save("noise", made.normal(*truth.shape))

    def path(self, name: str) -> str:
        return str(self.root / f"{name}.safetensors")

    def save(self, method: str, values: torch.Tensor) -> None:
        self.made.scores(method, values).save(self.path(method))

    def evaluate(self, *names: str, pack: str = "pack") -> dict[str, Any]:
        target = self.root / "out.json"
        main([str(self.root / pack), *map(self.path, names), "--json", str(target)])
        evaluated: dict[str, Any] = read_json(target)
        return evaluated


def scored(evaluated: dict[str, Any], method: str) -> tuple[dict[str, float], str]:
    (found,) = [each for each in evaluated["scored"] if each["method"] == method]
    return found["lds"]["interval"], found["lds"]["standing"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"), world())


@pytest.fixture(scope="module")
def evaluated(case: Case) -> dict[str, Any]:
    return case.evaluate("half", "noise", "truth", "near")


def test_the_truth_reaches_the_ceiling(evaluated: dict[str, Any]) -> None:
    lds, standing = scored(evaluated, "truth")
    ceiling = evaluated["ceiling"]
    assert 0.8 < ceiling["estimate"] < 0.99
    assert abs(lds["estimate"] - ceiling["estimate"]) < 0.03
    assert lds["low"] < ceiling["estimate"] < lds["high"]
    assert standing in ("best", "tie")


def test_random_scores_do_not(evaluated: dict[str, Any]) -> None:
    lds, standing = scored(evaluated, "noise")
    assert lds["low"] < 0 < lds["high"]
    assert lds["high"] < evaluated["ceiling"]["low"]
    assert standing == "behind"


def test_a_difference_within_error_is_a_tie(evaluated: dict[str, Any]) -> None:
    assert sorted(scored(evaluated, method)[1] for method in ("truth", "near")) == ["best", "tie"]
    assert scored(evaluated, "half")[1] == "behind"


def test_lds_is_against_the_mean_over_training_seeds(case: Case, evaluated: dict[str, Any]) -> None:
    rows = torch.tensor(case.pack.rows("subset")).reshape(40, 2)
    losses = case.pack.losses[rows].double().mean((1, 3)).T
    expected = linear_datamodelling_score(case.made.influence, case.pack.masks[rows[:, 0]], losses)
    assert scored(evaluated, "truth")[0]["estimate"] == pytest.approx(float(expected.mean()), abs=1e-9)
    assert (evaluated["subsets"], evaluated["repeats"], evaluated["queries"]) == (40, 2, QUERIES)


def test_leave_k_out_of_each_method_and_k(case: Case, evaluated: dict[str, Any]) -> None:
    rows = {(row["method"], row["k"]): row for row in evaluated["removals"]}
    assert list(rows) == [(method, k) for k in KS for method in ("truth", "noise", "random")]
    for k in KS:
        truth = rows["truth", k]
        # A top K costs the sum of its influences, over 10, with noise of a hundredth.
        expected = case.made.influence.topk(k, dim=1).values.sum(1) / 10
        assert truth["loss_change"]["interval"]["estimate"] == pytest.approx(float(expected.mean()), abs=0.02)
        assert truth["loss_change"]["standing"] == "best"
        assert rows["noise", k]["loss_change"]["standing"] == "behind"
        assert (truth["queries"], truth["models"], rows["random", k]["models"]) == (QUERIES, QUERIES, 2)
        random = rows["random", k]["loss_change"]["interval"]
        assert random["low"] < random["estimate"] < random["high"] < truth["loss_change"]["interval"]["low"]


def test_the_top_of_a_query_counts_for_that_query_alone(case: Case) -> None:
    values = per_query(case.pack, case.pack.loss_changes, "truth", KS[0])
    for row, query in enumerate(case.pack.query_id.tolist()):
        (model,) = [
            at for at, model in enumerate(case.pack.models) if model.name == f"top/truth/query-{query}/k-{KS[0]}"
        ]
        assert values[row] == case.pack.loss_changes[model, row]


def test_noise_floor_and_attributability(case: Case, evaluated: dict[str, Any]) -> None:
    floor = case.pack.loss_changes[case.pack.rows("full")].abs().amax(0)
    assert evaluated["floor"]["models"] == 3
    for row, found in enumerate(evaluated["attributability"]):
        assert found["query"] == 2 * row
        assert found["floor"] == pytest.approx(float(floor[row]))
        changes = {
            k: max(float(per_query(case.pack, case.pack.loss_changes, method, k)[row]) for method in ("truth", "noise"))
            for k in KS
        }
        assert found["beyond_seeds"] == next((k for k in KS if changes[k] > floor[row]), None)
        random = case.pack.loss_changes[case.pack.rows("random"), row].numpy()
        limit = random.mean() + 2 * random.std(ddof=1)
        assert found["beyond_random"] == next((k for k in KS if changes[k] > limit), None)
    for measure in ("beyond_seeds", "beyond_random"):
        assert any(found[measure] for found in evaluated["attributability"])


def random_rows(pack: Pack, k: int) -> list[int]:
    return [row for row in pack.rows("random") if pack.models[row].k == k]


def test_attributability_of_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other seeds alone, random removals alone of one K, or both."""
    made = World()
    made.top("truth", made.influence)
    made.full(2)
    (tmp_path / "seeds").mkdir()
    found = Case(tmp_path / "seeds", made).evaluate()["attributability"]
    assert {each["beyond_random"] for each in found} == {"unknown"}
    assert any(each["beyond_seeds"] in KS for each in found)
    assert "unknown" in capsys.readouterr().out
    made = World()
    made.top("truth", made.influence)
    made.random(3)
    pack = made.pack()
    gone = random_rows(pack, KS[0])
    pack.losses[gone] = torch.nan
    pack.losses[random_rows(pack, KS[1]), 0] = torch.nan
    pack.save(tmp_path / "random")
    main([str(tmp_path / "random"), "--json", str(tmp_path / "out.json")])
    found = read_json(tmp_path / "out.json")["attributability"]
    assert {each["beyond_seeds"] for each in found} == {"unknown"}
    assert all(each["floor"] is None for each in found)
    # For the first query no random removal was measured; for the others three, all of the second K.
    assert [each["beyond_random"] == "unknown" for each in found] == [True] + [False] * (QUERIES - 1)
    assert any(each["beyond_random"] in KS for each in found)


def test_random_removal_is_of_the_queries_of_the_methods(tmp_path: Path) -> None:
    made = World()
    made.top("truth", made.influence)
    made.random(2)
    pack = made.pack()
    dropped = [row for row, model in enumerate(pack.models) if model.k == KS[0] and model.query in (6, 8, 10)]
    pack.losses[dropped] = torch.nan
    evaluated = evaluate(pack, {})
    found = {(row.method, row.k): row for row in evaluated.removals}
    assert [found["random", k].queries for k in KS] == [3, QUERIES]
    expected = pack.loss_changes[random_rows(pack, KS[0]), :3].mean()
    assert found["random", KS[0]].loss_change.interval.estimate == pytest.approx(float(expected))
    drawn = {
        k: {point.query_id for point in evaluated.loss_changes if (point.method, point.k) == ("random", k)} for k in KS
    }
    assert drawn == {KS[0]: {0, 2, 4}, KS[1]: set(pack.query_id.tolist())}
    random = World()
    random.random(2)
    assert [row.queries for row in evaluate(random.pack(), {}).removals] == [QUERIES] * 2


def test_nothing_matters_below_a_high_floor(tmp_path: Path) -> None:
    loud = Case(tmp_path, world(subsets=8, noise=100.0))
    found = loud.evaluate("truth")
    assert [each["beyond_seeds"] for each in found["attributability"]] == [None] * QUERIES
    assert found["variances"]["rest"] > 20 * found["variances"]["data"]


def test_variances(evaluated: dict[str, Any]) -> None:
    """Of each sum of 20 of 40 influences over 10, and of the noise of a training seed: 0.1 squared."""
    variances = evaluated["variances"]
    assert variances["rest"] == pytest.approx(0.01, rel=0.3)
    assert variances["data"] == pytest.approx(40 * 0.25 / 100, rel=0.4)
    assert variances["seed"] < 0.005


def test_variances_of_losses_that_never_differ(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    made = World(noise=0)
    made.influence *= 0
    made.subsets(4)
    made.pack().save(case.root / "constant")
    assert case.evaluate(pack="constant")["variances"] == {"data": 0, "seed": 0, "rest": 0}
    assert "variance of a query's loss by data" in capsys.readouterr().out


def test_scores_of_some_queries(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.save("some", case.made.influence[:5])
    found = case.evaluate("some", "noise")
    assert [each["queries"] for each in found["scored"]] == [5, QUERIES]
    assert scored(found, "noise")[1] == "behind"
    assert f"5 of {QUERIES}" in capsys.readouterr().out


def test_queries_that_settings_were_not_chosen_on(case: Case) -> None:
    """They count alone: for the scores, the ground truth, and the removals, where only their own tops count."""
    target = case.root / "some.json"
    main([str(case.root / "pack"), "--queries", "4-10", case.path("half"), "--json", str(target)])
    found = read_json(target)
    kept = [int(query) for query in case.pack.query_id if 4 <= query <= 10]
    assert found["queries"] == len(kept) < QUERIES
    pack = case.pack.of_queries(range(4, 11))
    assert pack.query_id.tolist() == kept
    assert {model.query for model in case.pack.models} - {model.query for model in pack.models} == {0, 2}
    subsets = [model.name for model in pack.models if model.method == "subset"]
    rows = [row for row, model in enumerate(pack.models) if model.name in subsets]
    assert torch.equal(pack.losses[rows], case.pack.losses[case.pack.rows("subset")][:, -len(kept) :])
    per_query_alone = evaluate(pack, {"half": Scores.load(case.path("half")).of_queries(kept)})
    assert scored(found, "half")[0]["estimate"] == pytest.approx(per_query_alone.scored[0].lds.interval.estimate)
    with pytest.raises(UserError, match="found none of the pack's"):
        main([str(case.root / "pack"), "--queries", "99"])


def test_few_queries_are_not_compared(case: Case) -> None:
    """Nor are they the best, unless all methods know few."""
    case.save("few", case.made.influence[:4])
    found = case.evaluate("few", "noise")
    assert (scored(found, "few")[1], scored(found, "noise")[1]) == ("unknown", "best")
    case.save("fewer", case.made.influence[:3] + case.made.normal(3, SAMPLES))
    found = case.evaluate("few", "fewer")
    assert (scored(found, "few")[1], scored(found, "fewer")[1]) == ("best", "unknown")


def test_files_of_single_queries_are_one_method(case: Case) -> None:
    names = []
    for row in range(QUERIES):
        part = Scores(case.made.influence[row : row + 1], case.made.query_id[row : row + 1], case.made.sample_id, "m")
        part.save(case.path(f"part-{row}"))
        names.append(f"part-{row}")
    found = case.evaluate(*names, "truth")
    assert [each["method"] for each in found["scored"]] == ["m", "truth"]
    assert found["scored"][0]["lds"]["interval"] == found["scored"][1]["lds"]["interval"]


def test_one_method_with_two_settings_is_told_apart_by_file(case: Case) -> None:
    case.made.scores("truth", -case.made.influence, sign=-1).save(case.path("upside-down"))
    found = case.evaluate("truth", "upside-down")
    methods = [each["method"] for each in found["scored"]]
    assert methods == [f"truth ({case.path('truth')})", f"truth ({case.path('upside-down')})"]
    assert scored(found, methods[1])[0]["estimate"] == pytest.approx(-scored(found, methods[0])[0]["estimate"])


def test_the_order_of_samples_does_not_matter(case: Case, evaluated: dict[str, Any]) -> None:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    Scores(case.made.influence[:, order], case.made.query_id, case.made.sample_id[order], "shuffled").save(
        case.path("shuffled")
    )
    assert scored(case.evaluate("shuffled"), "shuffled")[0] == scored(evaluated, "truth")[0]


def test_a_query_with_nan_scores_is_left_out(case: Case) -> None:
    values = case.made.influence.clone()
    values[2, 5] = math.nan
    case.save("broken", values)
    (row,) = case.evaluate("broken")["scored"]
    assert row["queries"] == QUERIES - 1
    assert row["lds"]["interval"]["estimate"] > 0.8


def refusal(case: Case, name: str) -> str:
    with pytest.raises(UserError) as error:
        case.evaluate(name)
    assert str(error.value).startswith(case.path(name))
    return str(error.value)


def test_scores_that_do_not_belong_to_the_pack(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    made, values = case.made, case.made.influence
    Scores(values[:, 1:], made.query_id, made.sample_id[1:], "m").save(case.path("missing"))
    assert "found no sample 1, expected all 40 of the pack" in refusal(case, "missing")
    Scores(values, made.query_id, made.sample_id + 3, "m").save(case.path("shifted"))
    assert "found sample 121, expected those of the pack: 40 with ids 1 to 118" in refusal(case, "shifted")
    Scores(values, made.query_id + 1, made.sample_id, "m").save(case.path("others"))
    assert "found query 1 and 5 more" in refusal(case, "others")
    made.scores("m", values, digests={**DIGESTS, "queries": "x"}).save(case.path("remade"))
    assert "made from queries of digest x, expected" in refusal(case, "remade")
    made.scores("m", values, digests={**DIGESTS, "store": "x"}).save(case.path("elsewhere"))
    assert case.evaluate("elsewhere")["scored"][0]["queries"] == QUERIES
    assert "warning" in capsys.readouterr().err
    made.scores("m", values, digests={"store": "s", "queries": "q", "checkpoint": "any"}).save(case.path("same"))
    assert case.evaluate("same")["scored"][0]["queries"] == QUERIES


def test_a_query_twice(case: Case) -> None:
    case.save("again", case.made.influence)
    Scores(case.made.influence[:1], case.made.query_id[:1], case.made.sample_id, "again").save(case.path("again-0"))
    with pytest.raises(UserError, match=r"again-0.*found query 0, which .*again\.safetensors has too"):
        case.evaluate("again", "again-0")


def test_a_pack_alone(tmp_path: Path) -> None:
    """No scores, and of the ground truth only what a small sweep has."""
    small = World()
    small.top("truth", small.influence)
    Case(tmp_path, small)
    main([str(tmp_path / "pack"), "--json", str(tmp_path / "out.json")])
    found = read_json(tmp_path / "out.json")
    assert (found["scored"], found["ceiling"], found["floor"], found["attributability"]) == ([], None, None, [])
    assert [row["k"] for row in found["removals"]] == list(KS)


def test_subsets_of_one_seed_have_no_ceiling(tmp_path: Path) -> None:
    single = World()
    single.subsets(12, seeds=1)
    found = Case(tmp_path, single).evaluate("truth")
    assert (found["ceiling"], found["variances"], found["repeats"]) == (None, None, 1)
    assert scored(found, "truth")[0]["estimate"] > 0.5


def test_as_a_run(case: Case, evaluated: dict[str, Any], tmp_path: Path) -> None:
    names = ("half", "noise", "truth", "near")
    arguments = [str(case.root / "pack"), *map(case.path, names), "--out", str(tmp_path / "run")]
    main([*arguments, "--unpack", str(tmp_path / "files")])
    assert read_json(tmp_path / "run/metrics.json")["pack"] == evaluated
    assert read_json(tmp_path / "run/manifest.json")["status"] == "finished"
    drawn = {"pack_lds", "pack_loss_change", "pack_prediction"}
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == drawn
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert {f"evaluate/{name}" for name in drawn} <= set(events.Tags()["images"])
    (point,) = events.Scalars("evaluate/pack/truth/lds")
    assert point.value == pytest.approx(scored(evaluated, "truth")[0]["estimate"])
    assert (tmp_path / "files/original.ckpt").exists()
    main([*arguments, "--json", str(tmp_path / "again.json")])  # finished already: the tables again
    assert read_json(tmp_path / "again.json") == evaluated


def test_a_mistake_is_one_line(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: main([str(case.root / "none"), case.path("truth")]))
    assert ended.value.code == 1
    assert capfd.readouterr().err == f"error: {case.root / 'none'}.json: no such file\n"
