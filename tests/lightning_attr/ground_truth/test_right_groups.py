"""Top-1 and mAP of groups, by the command that users run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from damage import Refused
from miniature import Project

from datamodules import Store
from lightning_attr.artifacts import read_json
from lightning_attr.artifacts.scores import Scores, TopScores
from lightning_attr.cli import run_stage


def args(project: Project, run: Path, scores: str, **groups: Any) -> list[str]:
    words = {
        "trainer.default_root_dir": run, "trainer.accelerator": "cpu", "model": "lightning_attr.tasks.Evaluation",
        "model.init_args.scores": [scores],
        "model.init_args.groups": json.dumps({"store": str(project.store), "grouping": "colour", **groups}),
    }  # fmt: skip
    return ["test", *(word for key, value in words.items() for word in (f"--{key}", str(value)))]


@pytest.fixture
def scores(project: Project) -> str:
    return str(project.root / "similarity/scores.safetensors")


def by_hand(project: Project, path: str, right: Mapping[int, str], mean: bool) -> tuple[float, float]:
    """Top-1 and mAP of one right group a query: the reciprocal of its rank."""
    store, read = Store(project.store), Scores.load(path)
    tops, precisions = [], []
    for query, name in right.items():
        of_group: dict[str, list[float]] = {}
        row = read.scores[read.query_id.tolist().index(query)]
        for sample, score in zip(read.sample_id.tolist(), row.tolist(), strict=True):
            of_group.setdefault(store.meta(int(store.positions([sample])[0])).attributes["colour"], []).append(score)
        values = {group: sum(each) / (len(each) if mean else 1) for group, each in of_group.items()}
        rank = sorted(values, key=lambda group: -values[group]).index(name) + 1
        tops.append(float(rank == 1))
        precisions.append(1 / rank)
    return sum(tops) / len(tops), sum(precisions) / len(precisions)


@pytest.mark.parametrize("reduction", [None, "sum"])
@pytest.mark.filterwarnings("error:The ``compute`` method")
def test_groups_are_ranked(project: Project, scores: str, tmp_path: Path, reduction: str | None) -> None:
    right = {0: "purple", 1: "red", 2: "blue"}
    of = {query: [name] for query, name in right.items()}
    run_stage(args(project, tmp_path / "run", scores, of=of, reduction=reduction))
    metrics = read_json(tmp_path / "run/metrics.json")["metrics"]
    top_1, precision = by_hand(project, scores, right, mean=reduction is None)
    assert metrics["similarity-latent (colour)/top_1"]["mean"] == pytest.approx(top_1)
    assert metrics["similarity-latent (colour)/mean_average_precision"]["mean"] == pytest.approx(precision)
    assert metrics["similarity-latent (colour)/top_1"]["known"] == 3
    store = Store(project.store)
    colours = len({store.meta(place).attributes["colour"] for place in range(len(store))})
    assert metrics["random order (colour)/top_1"]["mean"] == pytest.approx(1 / colours)
    expected = sum(1 / rank for rank in range(1, colours + 1)) / colours
    assert metrics["random order (colour)/mean_average_precision"]["mean"] == pytest.approx(expected)
    assert "largest first (colour)/top_1" in metrics


def test_queries_may_say_it_themselves(project: Project, scores: str, tmp_path: Path) -> None:
    """Here the query store is the samples', whose ids are those of queries, too."""
    run_stage(args(project, tmp_path / "run", scores, queries=str(project.store)))
    store = Store(project.store)
    right = {query: store.meta(query).attributes["colour"] for query in Scores.load(scores).query_id.tolist()}
    metrics = read_json(tmp_path / "run/metrics.json")["metrics"]
    expected = by_hand(project, scores, right, mean=True)
    assert metrics["similarity-latent (colour)/mean_average_precision"]["mean"] == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"of": {"0": ["prple"]}}, "group: found 'prple', expected one of colour: "),
        ({}, "groups: found nothing, expected exactly one of queries, of"),
        ({"grouping": "color", "of": {"0": ["red"]}}, "with the attribute 'color', expected"),
        ({"of": {"99": ["red"]}}, "model.groups: found no query of"),
    ],
)
def test_mistakes(
    project: Project, scores: str, tmp_path: Path, refused: Refused, groups: dict[str, Any], words: str
) -> None:
    assert words in refused(args(project, tmp_path / "run", scores, **groups))


def test_the_top_alone_has_no_sums(project: Project, scores: str, tmp_path: Path, refused: Refused) -> None:
    whole = Scores.load(scores)
    value, order = whole.scores.sort(dim=1, descending=True, stable=True)
    TopScores(whole.sample_id[order[:, :3]], value[:, :3], whole.query_id, "trak").save(tmp_path / "top")
    words = refused(args(project, tmp_path / "run", str(tmp_path / "top"), of={"0": ["red"]}))
    assert "found the top 3 of each query only, expected scores of all samples" in words
