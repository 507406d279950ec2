"""The table of a set: against a computation in plain Python, from scores and from what is kept of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from abc_sets import MODELS, make_set, scores_of

from lightning_attr.abc import AbcRanks, AbcSet
from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.scores import Scores, TopScores
from lightning_attr.commands.abc import main
from lightning_attr.console import out
from lightning_attr.errors import UserError


class Case:
    """A set, and scores of three methods: one of a file for each model, over fewer distractors."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.set = make_set(root / "set")
        self.files = [
            self.save("good", scores_of(self.set, "good", 2.0)),
            self.save("none", scores_of(self.set, "none")),
        ]
        self.per_model = [
            self.save(
                model.name,
                scores_of(self.set, "own", 1.0, [model], 12, digests={"checkpoints.0": model.name}, samples=model.name),
            )
            for model in MODELS
        ]

    def save(self, name: str, scores: Scores) -> str:
        path = self.root / f"{name}.safetensors"
        scores.save(path)
        return str(path)

    def table(self, *files: str, **options: Any) -> list[dict[str, Any]]:
        target = self.root / "out.json"
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        main(["table", *files, "--json", str(target), *words])
        found: list[dict[str, Any]] = json.loads(target.read_text())
        return found

    def of_set(self, *files: str, **options: Any) -> list[dict[str, Any]]:
        return self.table(*files, set=self.root / "set", **options)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


def by_hand(of: AbcSet, path: str, query: int, k: int | None) -> float:
    """Recall or average precision of one query, averaged over random orders of equal scores."""
    scores = Scores.load(path)
    (model,) = [model for model in of.models if query in model.query_ids]
    others = {exemplar for other in of.models for exemplar in other.exemplars} - set(model.exemplars)
    (row,) = (scores.query_id == query).nonzero().flatten().tolist()
    pairs = [
        (value, sample)
        for value, sample in zip(scores.scores[row].tolist(), scores.sample_id.tolist(), strict=True)
        if sample not in others
    ]
    random, values = np.random.default_rng(query), []
    for _ in range(400):
        order = [pairs[place] for place in random.permutation(len(pairs))]
        order.sort(key=lambda pair: -pair[0])  # stable: equal scores stay in random order
        hits = [sample in model.exemplars for _, sample in order]
        if k is not None:
            values.append(sum(hits[:k]) / sum(hits))
        else:
            values.append(np.mean([sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1) if hit]))
    return float(np.mean(values))


def line(found: list[dict[str, Any]], category: str, kind: str, method: str) -> dict[str, Any]:
    (one,) = [each for each in found if (each["category"], each["kind"], each["method"]) == (category, kind, method)]
    return one


def test_values_are_those_of_a_plain_computation(case: Case) -> None:
    found = case.of_set(*case.files, *case.per_model, split="all")
    queries = {
        (category, kind): [q for m in MODELS if m.category == category for q in m.queries.get(kind, ())]
        for category in ("artist", "object")
        for kind in ("thing", "scene")
    }
    for (category, kind), asked in queries.items():
        for method, paths in (("good", case.files[:1]), ("none", case.files[1:]), ("own", case.per_model)):
            one = line(found, category, kind, method)
            assert one["queries"] == one["of_queries"] == len(asked)
            for name, k in (("recall_at_5", 5), ("recall_at_10", 10), ("average_precision", None)):
                expected = []
                for query in asked:
                    (path,) = [path for path in paths if query in Scores.load(path).query_id]
                    expected.append(by_hand(case.set, path, query, k))
                assert one[name]["interval"]["estimate"] == pytest.approx(np.mean(expected), abs=0.02)


def test_galleries_of_two_sizes_are_not_compared(case: Case) -> None:
    found = case.of_set(*case.files, *case.per_model)
    sizes = {(each["method"], each["distractors"]) for each in found}
    assert sizes == {("good", 20), ("none", 20), ("chance", 20), ("own", 12), ("chance", 12)}
    chance = [each["recall_at_5"]["interval"]["estimate"] for each in found if each["method"] == "chance"]
    exemplars = {"artist": [3], "object": [1, 1, 2]}  # of the test models, by query of "thing" below
    assert chance[0] == pytest.approx(5 / (20 + exemplars["artist"][0]))


def test_the_split_is_that_of_the_models(case: Case) -> None:
    def categories(split: str) -> set[tuple[str, int]]:
        return {(each["category"], each["of_queries"]) for each in case.of_set(*case.files, split=split)}

    assert categories("train") == {("artist", 2), ("artist", 1)}
    assert categories("test") == {("artist", 2), ("object", 3), ("object", 1)}
    (thing,) = {each["models"] for each in case.of_set(case.files[0]) if each["category"] == "artist"}
    assert thing == 1


def test_what_is_kept_gives_the_same_table(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    kept = case.root / "kept.safetensors"
    capsys.readouterr()
    first = case.of_set(*case.files, *case.per_model, keep=kept)
    printed = capsys.readouterr().out.split("made:")[0]
    assert case.table(str(kept)) == first
    assert capsys.readouterr().out.split("made:")[0] == printed
    assert kept.stat().st_size < 8_000
    more = case.of_set(str(kept), case.save("more", scores_of(case.set, "more", 0.5)))
    assert {each["method"] for each in more} == {"good", "none", "own", "more", "chance"}
    again = case.root / "again.safetensors"
    AbcRanks.load(kept).save(again)
    assert again.read_bytes() == kept.read_bytes()


def test_a_method_that_scored_some_queries_says_how_many(case: Case) -> None:
    some = case.save("some", scores_of(case.set, "some", 1.0, MODELS[3:4]))
    found = line(case.of_set(case.files[0], some), "object", "thing", "some")
    assert (found["queries"], found["of_queries"], found["models"]) == (2, 3, 1)
    none = line(case.of_set(case.files[0], some), "artist", "thing", "some")
    assert (none["queries"], none["average_precision"]["interval"]["estimate"]) == (0, None)


def test_a_control_is_measured_and_not_compared(case: Case) -> None:
    without = case.of_set(*case.files)
    control = case.save("learned", scores_of(case.set, "learned", 100.0))
    found = case.of_set(*case.files, control)
    assert [each for each in found if each["method"] != "learned"] == without
    for each in (each for each in found if each["method"] == "learned"):
        assert each["average_precision"]["interval"]["estimate"] == pytest.approx(1)
        assert each["average_precision"]["standing"] == "unknown"


def test_settings_of_a_name_stay_apart(case: Case) -> None:
    one = case.save("one", scores_of(case.set, "grads", 1.0, draws=10))
    other = case.save("other", scores_of(case.set, "grads", 1.0, draws=20))
    methods = {each["method"] for each in case.of_set(one, other)}
    assert methods == {f"grads ({one})", f"grads ({other})", "chance"}


def test_the_table_is_legible(case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "_width", 80)
    case.of_set(*case.files)
    printed = capsys.readouterr().out
    assert "artist: recall and mAP of exemplars" in printed
    assert "20 distractors" in printed
    assert "recall@5" in printed
    assert "chance" in printed
    assert all(len(row) <= 80 for row in printed.splitlines() if "mAP of exemplars" not in row and "made:" not in row)


def refusal(case: Case, *words: str) -> str:
    with pytest.raises(UserError) as error:
        main(["table", *words])
    return str(error.value)


def test_what_does_not_fit_is_refused(case: Case, tmp_path: Path) -> None:
    of = ["--set", str(case.root / "set")]
    good = scores_of(case.set, "good", 2.0)

    def saved(name: str, scores: Scores | TopScores) -> str:
        path = tmp_path / f"{name}.safetensors"
        scores.save(path)
        return str(path)

    assert "--set: found none, expected the set that" in refusal(case, case.files[0])
    other = replace(good, settings={"digests": {"store": "x", "queries": case.set.queries.digest}})
    assert "made from store of digest x" in refusal(case, saved("other", other), *of)
    beyond = replace(good, query_id=good.query_id + 100)
    assert "found query 100, expected those of the set's models" in refusal(case, saved("beyond", beyond), *of)
    hole = replace(good, scores=good.scores[:, 2:], sample_id=good.sample_id[2:])
    assert "a-1: found no score of exemplar 3" in refusal(case, saved("hole", hole), *of)
    unknown = replace(good, scores=good.scores.clone().fill_(torch.nan))
    assert "a-1: found NaN among its scores" in refusal(case, saved("unknown", unknown), *of)
    twice = [case.per_model[0], saved("again", scores_of(case.set, "own", 1.0, MODELS[:1], 12))]
    assert "found query 0, which another file of own has too" in refusal(case, *twice, *of)
    fewer = [case.per_model[0], saved("fewer", scores_of(case.set, "own", 1.0, MODELS[1:2], 11))]
    assert "found 11 distractors, expected the 12 of" in refusal(case, *fewer, *of)
    alone = saved("alone", scores_of(case.set, "alone", 1.0, MODELS[:1], 0))
    assert "found no distractor of the set" in refusal(case, alone, *of)
    top = TopScores(torch.tensor([[3, 0]]), torch.tensor([[2.0, 1.0]]), torch.tensor([0]), "top", good.settings)
    assert "found the top 2 of each query only" in refusal(case, saved("top", top), *of)
    assert "found 'tables', expected one of make, read, scores, table" in str(_raised(["tables"]))
    assert "split" in refusal(case, case.files[0], *of, "--split", "holdout")


def _raised(words: list[str]) -> UserError:
    with pytest.raises(UserError) as error:
        main(words)
    return error.value


def test_kept_ranks_of_another_set_are_refused(case: Case, tmp_path: Path) -> None:
    kept, other = tmp_path / "kept.safetensors", make_set(tmp_path / "set", gallery=31)
    case.of_set(case.files[0], keep=kept)
    scores_of(other, "good").save(tmp_path / "scores.safetensors")
    found = refusal(case, str(kept), str(tmp_path / "scores.safetensors"), "--set", str(tmp_path / "set"))
    assert "kept.safetensors: found another set than in" in found
    assert "found good again, expected each method once" in refusal(
        case, str(kept), case.files[0], "--set", str(case.root / "set")
    )


def test_damaged_ranks_are_refused(case: Case, tmp_path: Path) -> None:
    kept, wrong = tmp_path / "kept.safetensors", tmp_path / "wrong.safetensors"
    case.of_set(case.files[0], keep=kept)
    data = bytearray(kept.read_bytes())
    data[-4] ^= 1
    wrong.write_bytes(data)
    assert "damaged, its checksum does not match" in refusal(case, str(wrong))
    settings = {"digests": {}, "models": [], "methods": []}
    save_tensors(wrong, "abc", {"x": torch.zeros(1)}, settings)
    assert "models: found none" in refusal(case, str(wrong))


@pytest.mark.parametrize("option", ["keep", "json"])
def test_other_files_are_not_written_over(case: Case, tmp_path: Path, option: str) -> None:
    other = tmp_path / "other"
    other.write_bytes(Path(case.files[0]).read_bytes())
    before = other.read_bytes()
    message = refusal(case, case.files[0], "--set", str(case.root / "set"), f"--{option}", str(other))
    assert str(other) in message
    assert other.read_bytes() == before
