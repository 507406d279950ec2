"""The groups of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from report_runs import write_store

from datamodules import Meta, Store
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.explain.answer import answer, show

FOLDERS = (["birds"], ["birds"], ["boats"], [])


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """An answer about two queries."""
    metas = [
        Meta(10 * i, (f"caption {i}",), None, None, {"key": f"{i}.png", **({"groups": each} if each else {})})
        for i, each in enumerate(FOLDERS)
    ]
    write_store(tmp_path / "train.lmdb", metas)
    write_store(tmp_path / "queries.lmdb", [Meta(i, ("a boat",), None, None, {"key": f"out {i}.png"}) for i in (0, 1)])
    values = torch.tensor([[1.0, 2, 1, 9], [1.0, 1, 4, 9]])
    paths = {}
    for name, method in (("influence", "influence-ekfac"), ("similarity", "similarity-latent")):
        paths[name] = tmp_path / name
        Scores(values, torch.tensor([0, 1]), torch.arange(4) * 10, method).save(paths[name])
    with Store(tmp_path / "queries.lmdb") as queries, Store(tmp_path / "train.lmdb") as store:
        return answer(queries, store, paths, {}, "groups")


def test_groups_are_in_the_answer(found: dict[str, Any]) -> None:
    groups = found["groups"]
    assert (groups["grouping"], groups["reduction"], groups["count"]) == ("groups", "sum", 3)
    assert [(each["group"], each["images"], each["score"]) for each in groups["contributors"]] == [
        ("birds", 2, 2.5),
        ("boats", 1, 2.5),
        ("(none)", 1, 9.0),
    ]
    assert [each["first"] for each in groups["contributors"]] == [1, 1, 0]
    assert groups["contributors"][0]["ranks"] == {"similarity": 2}  # of the means
    first, second = groups["queries"]
    assert [each["group"] for each in first["contributors"]] == ["birds", "boats", "(none)"]
    assert [each["group"] for each in second["contributors"]] == ["boats", "birds", "(none)"]
    assert second["contributors"][0]["interval"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_groups_are_printed(found: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    show(found)
    printed = capfd.readouterr().out
    for words in ("Which contributors, how much, how sure (groups, mean over 2 queries)", "birds", "1 of 2", "sd"):
        assert words in printed
