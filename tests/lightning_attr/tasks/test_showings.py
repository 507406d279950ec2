"""Images of kohya's ``2_a`` and ``1_b`` from the folder to the scores: shown, measured and scored by their weights."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_sources import items, write_folder
from miniature import Project
from stopped import Moment
from test_grouped import Group, state
from test_resume import assert_same, stopped_then_resumed

from datamodules import LatentDataModule
from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.any_source import main as prepare
from lightning_attr.losses import delta_scores
from lightning_attr.methods import Combined, GradientSimilarity, Method, Similarity, attribute
from lightning_attr.methods.base import Context
from lightning_attr.models import Model, load
from lightning_attr.noise import keyed_generator
from lightning_attr.tasks import LatentDiffusion

COUNTS = {"2_a": 3, "1_b": 2}
SHOWN = [1, 1, 2, 2, 2]  # in the order of keys: 1_b comes first


@pytest.fixture(scope="module")
def kohya(stores: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project over such a folder; trained for two epochs and a half, in batches of three."""
    root = tmp_path_factory.mktemp("kohya")
    content = items(5)
    for item, folder in zip(content, [name for name, count in COUNTS.items() for _ in range(count)], strict=True):
        item.name = f"{folder}/{item.name}"
    write_folder(root / "images", content)
    words = ["--out", str(root / "train.lmdb"), "--encoders_from", str(stores.store), "--size", "32", "--workers", "0"]
    prepare([str(root / "images"), *words])
    shutil.copy(stores.val_store, root / "val.lmdb")
    project = Project(root)
    run_stage(train(project, root / "train"))
    for stage in ("sample", "curvature", "unlearn"):
        run_stage(project.args(stage))
    return project


def train(project: Project, run: Path) -> list[str]:
    return project.args("train", run, data__init_args__batch_size=3, trainer__max_steps=8)


def test_what_is_prepared(kohya: Project) -> None:
    with Store(kohya.store) as store:
        assert store.weights.tolist() == SHOWN
        assert [store.meta(place).key.split("/")[0] for place in range(5)] == ["1_b"] * 2 + ["2_a"] * 3  # type: ignore[union-attr]


def test_training_shows_each_as_often_each_time_with_another_noise(
    kohya: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[int, list[int]] = defaultdict(list)
    noises: dict[int, list[float]] = defaultdict(list)
    step, losses = LatentDiffusion.training_step, Model.losses

    def watched(task: LatentDiffusion, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        shown[task.current_epoch] += batch["id"].tolist()
        return step(task, batch, index)

    def heard(model: Any, latent: Any, conditions: Any, timesteps: Any, noise: Any, *more: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            noises[len(noises)] = noise.flatten(1).sum(1).tolist()
        return losses(model, latent, conditions, timesteps, noise, *more)

    monkeypatch.setattr(LatentDiffusion, "training_step", watched)
    monkeypatch.setattr(Model, "losses", heard)
    run_stage(train(kohya, tmp_path / "run"))
    assert [Counter(shown[epoch]) for epoch in (0, 1)] == [Counter(dict(enumerate(SHOWN)))] * 2
    assert [len(shown[epoch]) for epoch in range(3)] == [8, 8, 6]
    assert len({value for values in noises.values() for value in values}) == 22
    assert_same(tmp_path / "run/checkpoints/last.ckpt", kohya.checkpoint)


@pytest.mark.slow
def test_killed_between_two_showings_of_an_image(kohya: Project, tmp_path: Path) -> None:
    moment = Moment("lightning_attr.tasks:LatentDiffusion.training_step", 6)
    stopped_then_resumed(train(kohya, tmp_path / "run"), tmp_path / "log", moment)
    assert_same(tmp_path / "run/checkpoints/last.ckpt", kohya.checkpoint)


@pytest.mark.slow
def test_trained_in_a_group(kohya: Project, tmp_path: Path) -> None:
    together, apart = Group(kohya, tmp_path / "together"), Group(kohya, tmp_path / "apart")
    run_stage(together.args("group"))
    for name in ("subset", "full"):
        run_stage(apart.args(name))
        ours, theirs = state(together.root / name), state(apart.root / name)
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=2e-5)


def test_the_curvature_is_the_mean_over_showings(kohya: Project) -> None:
    """Squares of gradients of one showing after the other, at the draws of each."""
    tensors, settings = load_tensors(kohya.curvature)
    assert settings["draws"] == 2 * sum(SHOWN)
    model = load(kohya.checkpoint)
    selected = {name: weight.requires_grad_() for name, weight in model.select("cross_kv").items()}
    loader = LatentDataModule(str(kohya.store), batch_size=1, order="stored").train_dataloader()
    expected = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in selected.items()}
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for one in loader:
            generator = keyed_generator("curvature", 0, epoch, int(one["showing"]))
            timestep = torch.tensor([generator.integers(1000)])
            noise = torch.from_numpy(generator.standard_normal(one["latent"].shape, dtype=np.float32))
            loss = model.losses(one["latent"], model.conditions_of(one), timestep, noise).sum()
            for name, gradient in zip(selected, torch.autograd.grad(loss, list(selected.values())), strict=True):
                expected[name] += gradient.double().square() / 16
    for name, value in tensors.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-12)


METHODS: dict[str, tuple[Method, list[int]]] = {
    "influence": (GradientSimilarity("dot"), SHOWN),
    "cosine": (GradientSimilarity("cosine"), [1] * 5),
    "likeness": (Similarity(), [1] * 5),
}


@pytest.mark.parametrize("name", METHODS)
def test_influence_is_that_of_all_showings_and_likeness_is_not(kohya: Project, name: str) -> None:
    method, factors = METHODS[name]
    queries, store, model = Store(kohya.queries), Store(kohya.store), load(kohya.checkpoint)
    found = attribute(method, queries, store, model)
    method.prepare(replace(Context.of(queries, found.query_id.tolist(), store, torch.device("cpu")), model=model))
    (of_one,) = method.score([method.measure(whole_samples(store, np.arange(5)))])
    torch.testing.assert_close(found.scores, of_one.detach() * torch.tensor(factors))


def test_a_sum_of_methods_has_weights_before_it_is_standardised(kohya: Project) -> None:
    queries, store, model = Store(kohya.queries), Store(kohya.store), load(kohya.checkpoint)
    parts = [attribute(METHODS[name][0], queries, store, model).scores.double() for name in ("influence", "likeness")]
    standardised = [(part - part.mean(1, keepdim=True)) / part.std(1, keepdim=True, correction=0) for part in parts]
    found = attribute(Combined([METHODS["influence"][0], METHODS["likeness"][0]]), queries, store, model)
    torch.testing.assert_close(found.scores.double(), sum(standardised), rtol=1e-4, atol=1e-4)


def test_loss_deltas_of_the_recorder(kohya: Project) -> None:
    before, after = (
        load_tensors(kohya.root / name)[0]["losses"]
        for name in ("base_losses.safetensors", "unlearn/losses.safetensors")
    )
    found = Scores.load(kohya.scores).scores[0]
    assert found.std() > 0
    torch.testing.assert_close(found, delta_scores(before, after, "max") * torch.tensor(SHOWN))


def test_from_the_command_line(kohya: Project, tmp_path: Path) -> None:
    method = {
        "class_path": "lightning_attr.methods.Unlearning",
        "init_args": {"changed": str(kohya.root / "unlearn/weights.safetensors"), "draws": {"timesteps": 1}},
    }
    run_stage(
        kohya.args(
            "similarity",
            tmp_path / "run",
            model__init_args__method=json.dumps(method),
            model__init_args__query_ids="[0]",
            model__init_args__checkpoints=f"[{kohya.checkpoint}]",
        )
    )
    torch.testing.assert_close(
        Scores.load(tmp_path / "run/scores.safetensors").scores, Scores.load(kohya.scores).scores, rtol=1e-4, atol=1e-9
    )
