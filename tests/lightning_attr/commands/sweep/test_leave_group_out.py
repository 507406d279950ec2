"""Sweeps that retrain without whole groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import Project
from sweeps import Miniature, here

from datamodules import Store
from datamodules.grouping import Clusters, read_groups
from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.scores import Scores, TopScores
from lightning_attr.commands.evaluate import main as evaluate
from lightning_attr.commands.sweep.command import main, parsed_options
from lightning_attr.commands.sweep.plan import entries
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.pack import Pack

ALONE = {"top": None, "random": None, "subsets": None, "full": None}


@pytest.fixture
def sweep(project: Project, tmp_path: Path) -> Miniature:
    return Miniature(project, tmp_path / "miniature")


def names(sweep: Miniature, **groups: Any) -> list[str]:
    sweep.settings = {**ALONE, **sweep.settings, "groups": {"grouping": "colour", **groups}}
    return [entry.name for entry in entries(parsed_options(sweep.args()).sweep)]


def sizes(project: Project) -> dict[str, int]:
    groups = read_groups(Store(project.store), "colour")
    return dict(zip(groups.names, groups.sizes.tolist(), strict=True))


def test_named_groups_and_as_many_random_samples(sweep: Miniature) -> None:
    size = sizes(sweep.project)
    two = list(size)[:2]
    random = [f"random/k-{k}/{seed}" for k in dict.fromkeys(size[name] for name in two) for seed in range(2)]
    assert names(sweep, names=two, random=2) == [*(f"group/colour/{name}" for name in two), *random]


def test_random_removals_of_that_size_are_there_once(sweep: Miniature) -> None:
    name, k = next(iter(sizes(sweep.project).items()))
    sweep.settings = {"random": {"k": [k], "count": 2}}
    both = [f"random/k-{k}/{seed}" for seed in range(3)]
    assert names(sweep, names=[name], random=3) == [f"group/colour/{name}", *both]
    assert names(sweep, names=[name], random=1) == [f"group/colour/{name}", *both[:2]]


def test_the_first_group_of_each_query_once(sweep: Miniature, tmp_path: Path) -> None:
    """A sum for influence, a mean for a similarity: of a group that is large, or one that is much alike."""
    project = sweep.project
    groups, store = read_groups(Store(project.store), "colour"), Store(project.store)
    small, large = np.argsort(groups.sizes)[[0, -1]]
    assert groups.sizes[large] > groups.sizes[small]
    values = torch.zeros(2, len(store))
    values[:, groups.members(groups.names[small])] = 1.0
    values[:, groups.members(groups.names[large])] = 0.99
    queries, ids = torch.from_numpy(Store(project.queries).ids[:2].copy()), torch.from_numpy(store.ids.copy())
    for method, first in (("influence", large), ("similarity-latent", small)):
        Scores(values, queries, ids, method).save(tmp_path / "scores")
        found = names(sweep, scores={"mine": str(tmp_path / "scores")}, queries=queries.tolist(), random=0)
        assert found == [f"group/colour/{groups.names[first]}"]


def test_names_that_are_no_folders(sweep: Miniature) -> None:
    store = Store(sweep.project.store)
    first, second = (int(sample) for sample in store.ids[:2])
    path = sweep.root.parent / "near.json"
    Clusters(store.digest, ((first, second),), {}).save(path)
    (name,) = (name for name, size in zip(*_groups(store, str(path)), strict=True) if size == 2)
    (entry,) = names(sweep, grouping=str(path), names=[name], random=0)
    assert entry.startswith("group/near-json-")
    assert ".." not in entry
    assert " " not in entry


def _groups(store: Store, grouping: str) -> tuple[tuple[str, ...], list[int]]:
    groups = read_groups(store, grouping)
    return groups.names, groups.sizes.tolist()


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, "groups: found neither names nor scores, expected at least one of them"),
        ({"names": ["prple"]}, "group: found 'prple', expected one of colour: "),
        ({"grouping": "hue", "names": ["red"]}, "with the attribute 'hue', expected"),
        ({"names": ["red"], "random": -1}, "groups.random: found -1, expected"),
        ({"scores": {"mine": "nothing"}}, "scores: found no file nothing"),
        ({"grouping": "seed", "names": ["1"]}, "with the attribute 'seed'"),
    ],
)
def test_mistakes(sweep: Miniature, groups: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        names(sweep, **groups)
    assert words in str(refused.value)


def test_the_top_alone_names_no_group(sweep: Miniature, tmp_path: Path) -> None:
    ids = torch.from_numpy(Store(sweep.project.queries).ids.copy())
    TopScores(torch.zeros(len(ids), 1), torch.ones(len(ids), 1), ids, "trak").save(tmp_path / "top")
    with pytest.raises(UserError, match="found the top 1 of each query only, expected scores of all samples"):
        names(sweep, scores={"mine": str(tmp_path / "top")})


@pytest.mark.slow
def test_a_group_is_left_out_and_the_pack_knows_which(
    sweep: Miniature, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_attr.commands.sweep.command.run_local", here)
    project = sweep.project
    store = Store(project.store)
    groups = read_groups(store, "colour")
    name = groups.names[0]
    names(sweep, names=[name])
    main(sweep.args())
    tensors, settings = load_tensors(sweep.entry(f"group/colour/{name}") / "retraining.safetensors")
    assert tensors["removed_id"].tolist() == store.ids[groups.members(name)].tolist()
    assert (settings["method"], settings["grouping"], settings["groups"]) == ("group", "colour", [name])
    of_group, of_random = Pack.load(sweep.folder / "pack").models
    assert (of_group.method, of_group.group, of_group.grouping, of_group.query) == ("group", name, "colour", None)
    assert (of_random.k, of_random.group) == (of_group.k, None)
    capfd.readouterr()
    evaluate([str(sweep.folder / "pack"), str(project.root / "similarity/scores.safetensors")])
    printed = capfd.readouterr().out
    assert "Leave-group-out" in printed
    assert f"colour: {name}" in printed
