"""``attribute`` without a run: the bits of the command line, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import Project

from datamodules import Store
from lightning_attr import methods
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output
from lightning_attr.methods import GradientSimilarity, Influence, Method, Similarity, Trak, attribute
from lightning_attr.models import load
from lightning_attr.noise import Draws

TWO = Output(draws=Draws(2))


def predicted(project: Project, run: Path, method: Method, checkpoints: list[Path], **settings: Any) -> Scores:
    """Scores of the command line, of a method with the settings of this one."""
    stated = {name: value for name, value in method.settings().items() if name in vars(method)}
    stated |= {"curvature": method.curvature} if isinstance(method, Influence) else {}
    config = {"class_path": f"{methods.__name__}.{type(method).__name__}", "init_args": stated}
    options = {
        "model__init_args__method": json.dumps(config),
        "model__init_args__checkpoints": json.dumps([str(path) for path in checkpoints]),
        "data__init_args__batch_size": 3,  # three chunks of 12 samples, and one of 4
        "trainer__logger": "false",
    }
    run_stage(project.args("similarity", run, **options, **settings))
    return Scores.load(run / "scores.safetensors")


@pytest.mark.parametrize(
    ("make", "models", "query_ids"),
    [
        (lambda _: Similarity("text"), 0, None),
        (lambda project: Influence(str(project.curvature), output=TWO, captions=None), 1, [3, 1]),
        (lambda _: Trak(projection=64, output=TWO, per_draw=True), 1, None),
        (lambda _: GradientSimilarity(output=TWO), 2, [0]),
    ],
    ids=["no model", "a curvature", "two passes over the chunks", "two models"],
)
def test_bits_of_the_command_line(
    project: Project, tmp_path: Path, make: Any, models: int, query_ids: list[int] | None
) -> None:
    checkpoints = [project.checkpoint, project.root / "leave_k_out/checkpoints/last.ckpt"][:models]
    method, queries, store = make(project), Store(project.queries), Store(project.store)
    loaded = [load(path) for path in checkpoints]
    attribute(method, queries, store, *loaded, query_ids=query_ids, batch_size=3).save(tmp_path / "scores.safetensors")
    found = Scores.load(tmp_path / "scores.safetensors")
    settings = {} if query_ids is None else {"model__init_args__query_ids": query_ids}
    expected = predicted(project, tmp_path / "run", make(project), checkpoints, **settings)
    for name in ("scores", "query_id", "sample_id"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.scores.std() > 0
    assert (found.method, found.settings) == (expected.method, expected.settings)


def test_mistakes(project: Project) -> None:
    queries, store = Store(project.queries), Store(project.store)
    with pytest.raises(UserError, match="expected the checkpoint that the method looks at"):
        attribute(GradientSimilarity(), queries, store)
    with pytest.raises(UserError, match="found 2, expected at most one"):
        attribute(Similarity(), queries, store, load(project.checkpoint), load(project.checkpoint))
    with pytest.raises(UserError, match=r"query_ids: found \[1, 1\], expected at least one id, each once"):
        attribute(Similarity(), queries, store, query_ids=[1, 1])
    with pytest.raises(UserError, match="batch_size: found 0, expected at least 1"):
        attribute(Similarity(), queries, store, batch_size=0)
