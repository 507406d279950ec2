"""The groups of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from report_runs import write_store

from datamodules import Meta, Store
from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.explain.answer import answer, show
from lightning_attr.commands.explain.command import first_group
from lightning_attr.commands.explain.plan import Question, check_files, configs, removals_of, retrainings

FOLDERS = (["birds"], ["birds"], ["boats"], [])


def retrained(path: Path, rises: tuple[float, float], removed: int) -> Path:
    """What a training without some images did to the losses of both queries."""
    before = torch.tensor([[0.5, 0.7], [0.1, 0.3]])
    tensors = {
        "query_id": torch.tensor([0, 1]),
        "removed_id": torch.arange(removed),
        "original_losses": before,
        "retrained_losses": before + torch.tensor(rises)[:, None],
    }
    save_tensors(path, "retraining", tensors, {"method": "any", "k": removed})
    return path


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    """An answer about two queries, checked without the group that is first."""
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
    without = retrained(tmp_path / "without", (0.2, 0.4), 2), retrained(tmp_path / "random", (0.02, 0.0), 2)
    with Store(tmp_path / "queries.lmdb") as queries, Store(tmp_path / "train.lmdb") as store:
        return answer(queries, store, paths, {"group/groups/birds": without}, "groups")


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


def test_the_first_group_has_its_check(found: dict[str, Any]) -> None:
    """The loss change without it beside that without as many random images, on average and for each query."""
    birds, *others = found["groups"]["contributors"]
    assert birds["check"]["removed"] == 2
    assert birds["check"]["loss_change"] == {"group": pytest.approx(0.3), "random": pytest.approx(0.01)}
    assert not any("check" in each for each in others)
    of_second = {each["group"]: each for each in found["groups"]["queries"][1]["contributors"]}["birds"]
    assert of_second["check"]["loss_change"] == {"group": pytest.approx(0.4), "random": pytest.approx(0.0)}
    assert "check" not in found["queries"][0]


def test_groups_are_printed(found: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    show(found)
    printed = capfd.readouterr().out
    for words in ("Which contributors, how much, how sure (groups, mean over 2 queries)", "birds", "1 of 2", "sd"):
        assert words in printed
    assert (
        "Trained again without birds, the model's loss at these 2 outputs, on average, changed by +0.3000; "
        "without 2 random images by +0.0100."
    ) in printed


def question(root: Path, sizes: tuple[int, ...], check: int) -> Question:
    """One about a store of groups of so many images, whose scores are there and fall from image to image."""
    groups = [f"group {number}" for number, size in enumerate(sizes) for _ in range(size)]
    write_store(root / "train.lmdb", [Meta(i, ("a",), None, None, {"artist": each}) for i, each in enumerate(groups)])
    asked = Question(
        root, root / "model", root / "train.lmdb", root / "queries.lmdb", None, 1, 1, check, root / "recipe"
    )
    falling = torch.arange(len(groups), 0, -1, dtype=torch.float32)[None]
    Scores(falling, torch.tensor([7]), torch.arange(len(groups)), "influence").save(asked.scores["influence"])
    return asked


@pytest.mark.parametrize(("check", "names"), [(4, ["random-3"]), (3, [])])
def test_the_check_goes_without_the_first_group_and_as_many_random_images(
    tmp_path: Path, check: int, names: list[str]
) -> None:
    """Those of ``--check`` are trained without anyway."""
    asked = question(tmp_path, (3, 2), check)
    removals = [*removals_of(asked, [7]), *first_group(asked, "artist")]
    assert [each.name for each in removals[2:]] == [removals[2].name, *names]
    assert removals[2].exclude == {"grouping": "artist", "group": "group 0"}
    files = check_files(asked, removals)
    assert files[removals[2].name] == tuple(
        tmp_path / "check" / name / "retraining.safetensors" for name in (removals[2].name, "random-3")
    )
    excluded = [config["data"]["init_args"]["exclude"] for config in list(configs(asked, removals).values())[3:]]
    assert [each["random"] for each in excluded] == [None, check, None, *([3] if names else [])]
    assert len(retrainings(removals, asked)) == len(removals)


def test_a_group_of_all_images_cannot_be_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert first_group(question(tmp_path, (3,), 2), "artist") == []
    assert "not checked without 'group 0': no other group has images to train on" in capfd.readouterr().err
