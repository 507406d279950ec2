"""Fitting K-FAC and EK-FAC over a store: resumed exactly, whatever the batch size, and refused where it cannot be."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from damage import Refused, assert_says
from miniature import Project
from stopped import Moment
from test_ddp import finish
from test_resume import TASKS, assert_same, stopped_then_resumed

from lightning_attr.artifacts import load_tensors
from lightning_attr.cli import run_stage
from lightning_attr.curvature import Damping, KroneckerCurvature, load_curvature
from lightning_attr.tasks import Curvature


def test_what_it_writes(project: Project, ekfac: Path) -> None:
    curvature = load_curvature(ekfac / "curvature.safetensors")
    assert isinstance(curvature, KroneckerCurvature)
    names = set(load_tensors(project.curvature)[0])
    assert {f"{layer}.weight" for layer in curvature.layers} == names
    assert (curvature.kind, curvature.settings["weights"], curvature.settings["draws"]) == ("ekfac", "cross_kv", 80)
    assert (curvature.settings["samples"]["count"], curvature.settings["precision"]) == (40, "32-true")
    assert len({id(layer.activation) for layer in curvature.layers.values()}) == 1
    assert all(layer.activation.tokens == 40 * 6 and layer.samples == 40 for layer in curvature.layers.values())
    assert load_curvature(ekfac / "factors_ekfac").settings == curvature.settings


MOMENTS = {"of the moments": 4, "in the first step of the squares": 6, "of the squares": 9}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_the_middle(project: Project, ekfac: Path, tmp_path: Path, moment: str) -> None:
    args = project.args("curvature", tmp_path / "run", model__init_args__kind="ekfac")
    stopped_then_resumed(
        args, tmp_path / "log", Moment(f"{TASKS}Curvature.training_step", MOMENTS[moment], signal.SIGKILL)
    )
    assert_same(tmp_path / "run/curvature.safetensors", ekfac / "curvature.safetensors")


@pytest.mark.slow
def test_two_ranks(project: Project, ekfac: Path, tmp_path: Path) -> None:
    finish(project.args("curvature", tmp_path / "run", model__init_args__kind="ekfac"), tmp_path / "log")
    same_inverse(tmp_path / "run", ekfac)
    ours, theirs = (load_tensors(folder / "curvature.safetensors")[1] for folder in (tmp_path / "run", ekfac))
    assert ours == theirs


def test_the_batch_size_changes_nothing(project: Project, ekfac: Path, tmp_path: Path) -> None:
    settings = {"model__init_args__kind": "ekfac", "data__init_args__batch_size": 13}
    run_stage(project.args("curvature", tmp_path / "run", **settings))
    same_inverse(tmp_path / "run", ekfac)


def same_inverse(found: Path, expected: Path) -> None:
    """Compare what two curvatures do: their eigenvectors may differ in sign."""
    ours, theirs = (load_curvature(folder / "curvature.safetensors") for folder in (found, expected))
    assert isinstance(ours, KroneckerCurvature)
    generator = torch.Generator().manual_seed(0)
    gradients = {
        f"{name}.weight": torch.randn(layer.eigenvalues.shape, generator=generator, dtype=torch.float64)
        for name, layer in ours.layers.items()
    }
    for name, inverse in ours.inverse(gradients, Damping(0.1, "mean")).items():
        expected_inverse = theirs.inverse(gradients, Damping(0.1, "mean"))[name]
        assert (inverse - expected_inverse).norm() < 1e-4 * expected_inverse.norm(), name


def test_all_of_attention_with_its_biases(project: Project, tmp_path: Path) -> None:
    settings = {"model__init_args__kind": "kfac", "model__init_args__weights": "attention"}
    run_stage(project.args("curvature", tmp_path / "run", **settings))
    curvature = load_curvature(tmp_path / "run/curvature.safetensors")
    assert isinstance(curvature, KroneckerCurvature)
    on_text = {id(layer.activation) for name, layer in curvature.layers.items() if ".attn2.to_k" in name}
    assert len(on_text) == 1
    others = [layer.activation for name, layer in curvature.layers.items() if not name.endswith(("to_k", "to_v"))]
    assert on_text.isdisjoint({id(activation) for activation in others})
    biased = [layer.eigenvalues.shape for name, layer in curvature.layers.items() if "to_out" in name]
    assert biased
    assert all(inputs == outputs + 1 for outputs, inputs in biased)
    task = Curvature(str(project.checkpoint), kind="kfac", weights="attention")
    inverse = curvature.inverse({name: weight.detach() for name, weight in task.selected.items()}, Damping(1.0))
    assert {name: part.shape for name, part in inverse.items()} == {
        name: weight.shape for name, weight in task.selected.items()
    }


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"trainer__max_epochs": 3}, ["trainer.max_epochs", "3", "multiple of 2"]),
        ({"model__init_args__weights": "all"}, ["weights", "norm.weight", "linear layers and convolutions"]),
        ({"model__init_args__weights": r"to_out\.0\.bias"}, ["weights", "bias alone", "weight with the bias"]),
        ({"trainer__max_steps": 5}, ["ended before the second half", "ekfac"]),
    ],
)
def test_refused(
    project: Project, refused: Refused, tmp_path: Path, settings: dict[str, object], parts: list[str]
) -> None:
    args = project.args("curvature", tmp_path / "run", model__init_args__kind="ekfac", **settings)
    assert_says(refused(args), *parts)
