"""Several methods side by side in TensorBoard, after an evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
from damage import Refused
from miniature import Project
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.side_by_side import SideBySide, read_tops
from datamodules.store import Store
from lightning_attr.artifacts.scores import Scores, TopScores, load_scores
from lightning_attr.cli import run_stage
from lightning_attr.errors import UserError


def callbacks(project: Project, **settings: Any) -> str:
    init_args = {"store": str(project.store), "queries": str(project.queries), **settings}
    return json.dumps([{"class_path": "callbacks.SideBySide", "init_args": init_args}])


def shown(run: Path) -> list[str]:
    found = []
    for file in run.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file), size_guidance={"images": 0})
        events.Reload()
        found += [tag for tag in events.Tags()["images"] if tag.startswith("side_by_side/")]
    return sorted(found)


def test_a_figure_for_each_query_that_several_methods_know(project: Project, tmp_path: Path) -> None:
    """Unlearning scored query 0 alone, so that there is nothing beside the others."""
    run_stage(project.args("evaluate", tmp_path, trainer__callbacks=callbacks(project)))
    assert shown(tmp_path) == ["side_by_side/0"]


def test_the_first_queries_only(project: Project, tmp_path: Path) -> None:
    similarity = Scores.load(project.root / "similarity/scores.safetensors")
    other = Scores(-similarity.scores, similarity.query_id, similarity.sample_id, "contrast", similarity.settings)
    other.save(tmp_path / "other.safetensors")
    files = json.dumps([str(project.root / "similarity/scores.safetensors"), str(tmp_path / "other.safetensors")])
    watch = callbacks(project, first=3, top=5)
    run_stage(project.args("evaluate", tmp_path / "run", trainer__callbacks=watch, model__init_args__scores=files))
    assert shown(tmp_path / "run") == [f"side_by_side/{query}" for query in (0, 1, 2)]


def test_scores_of_other_images_are_refused(project: Project, refused: Refused, tmp_path: Path) -> None:
    message = refused(
        project.args("evaluate", tmp_path, trainer__callbacks=callbacks(project, store=str(project.val_store)))
    )
    assert "made from store of digest" in message
    assert str(project.val_store) in message


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(UserError, match=r"SideBySide\.top: found 0, expected at least 1"):
        SideBySide("train.lmdb", "queries.lmdb", top=0)


def test_files_of_one_method_count_as_one_and_others_are_told_apart(project: Project, tmp_path: Path) -> None:
    store, queries = Store(project.store), Store(project.queries)
    whole = Scores.load(project.root / "similarity/scores.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("first", "rest", "settings", "top")]
    for path, rows in ((paths[0], [0]), (paths[1], [1, 2, 3, 4])):
        Scores(whole.scores[rows], whole.query_id[rows], whole.sample_id, "dot", whole.settings).save(path)
    Scores(-whole.scores, whole.query_id, whole.sample_id, "dot", {**whole.settings, "draws": 2}).save(paths[2])
    order = whole.scores.sort(dim=1, descending=True, stable=True)
    best = TopScores(whole.sample_id[order.indices[:, :3]], order.values[:, :3], whole.query_id, "top", whole.settings)
    best.save(paths[3])
    tops = read_tops(paths, store, queries, 6)
    assert list(tops) == [f"dot ({paths[0]})", f"dot ({paths[2]})", "top"]
    for query in whole.query_id.tolist():
        assert tops[f"dot ({paths[0]})"][query] == whole.ranked(query, 6)
        assert tops["top"][query] == load_scores(paths[3]).ranked(query, 3)
    assert [len(top) for top in tops["top"].values()] == [3] * 5
