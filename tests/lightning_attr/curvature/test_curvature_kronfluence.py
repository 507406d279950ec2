"""K-FAC and EK-FAC against kronfluence: the same factors and pairwise scores, and each reads what the other wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from miniature import Project
from torch import Tensor, nn

from lightning_attr.cli import run_stage
from lightning_attr.curvature import Damping, KroneckerCurvature, load_curvature
from lightning_attr.gradients import per_sample_gradients
from lightning_attr.models import Inputs
from lightning_attr.tasks import Curvature

kronfluence = pytest.importorskip("kronfluence", reason="kronfluence is not installed; it asks for torchvision")
pytestmark = pytest.mark.slow
DAMPING = Damping(0.1, "mean")  # what kronfluence does without a damping factor

Draw = tuple[Tensor, ...]


class Fitted(NamedTuple):
    """A curvature that ``Curvature`` fitted, and the draws that it saw, epoch by epoch."""

    run: Path
    kind: str
    epochs: list[list[Draw]]
    task: Curvature


@pytest.fixture(params=["kfac", "ekfac"])
def fitted(request: pytest.FixtureRequest, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fitted:
    seen: list[Draw] = []
    losses = Curvature._losses

    def recorded(task: Curvature, network: nn.Module, inputs: Inputs) -> Tensor:
        latent, conditions, timesteps, noise = inputs
        seen.extend(zip(latent, conditions["text"], timesteps, noise, strict=True))
        return losses(task, network, inputs)

    settings = {"model__init_args__kind": request.param, "model__init_args__weights": r"attn2\.to_(k|v|out)"}
    with monkeypatch.context() as patch:
        patch.setattr(Curvature, "_losses", recorded)
        run_stage(project.args("curvature", tmp_path / "run", **settings))
    task = Curvature(str(project.checkpoint), request.param, settings["model__init_args__weights"])
    return Fitted(tmp_path / "run", request.param, [seen[:40], seen[40:]], task)


def inputs_of(batch: Sequence[Tensor]) -> Inputs:
    latent, text, timesteps, noise = batch
    return Inputs(latent, {"text": text}, timesteps, noise)


def analyzer(fitted: Fitted) -> Any:
    """Return kronfluence's analyzer, whose folder is the run's."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task

    class Denoising(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Draw, model: nn.Module, sample: bool = False) -> Tensor:
            return fitted.task.model.over(model).losses(*inputs_of(batch)).sum()

        def compute_measurement(self, batch: Draw, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return sorted({name.rpartition(".")[0] for name in fitted.task.selected})

    trained = Curvature(str(fitted.task.checkpoint), "kfac", fitted.task.weights).denoiser
    task = Denoising()
    return Analyzer(
        fitted.run.name,
        prepare_model(trained, task),
        task,
        cpu=True,
        output_dir=str(fitted.run.parent),
        disable_tqdm=True,
    )


def fit(theirs: Any, fitted: Fitted) -> Path:
    """Fit kronfluence's factors on the same draws; return their folder."""
    from kronfluence.arguments import FactorArguments

    first, second = fitted.epochs
    settings = {"factor_args": FactorArguments(strategy=fitted.kind, use_empirical_fisher=True)}
    moments = first + second if fitted.kind == "kfac" else first
    theirs.fit_covariance_matrices("theirs", moments, per_device_batch_size=8, **settings)
    theirs.perform_eigendecomposition("theirs", **settings)
    if fitted.kind == "ekfac":
        theirs.fit_lambda_matrices("theirs", second, per_device_batch_size=8, **settings)
    return Path(theirs.factors_output_dir("theirs"))


def pairwise_scores(theirs: Any, fitted: Fitted, factors: str) -> Tensor:
    """Return kronfluence's scores of the first epoch's draws for six of the second's, [6, 40]."""
    from kronfluence.arguments import ScoreArguments

    theirs.compute_pairwise_scores(
        f"scores_{factors}", factors, fitted.epochs[1][:6], fitted.epochs[0],
        per_device_query_batch_size=6, per_device_train_batch_size=8, score_args=ScoreArguments(damping_factor=None),
    )  # fmt: skip
    scores: Tensor = theirs.load_pairwise_scores(f"scores_{factors}")["all_modules"]
    return scores


def our_scores(curvature: KroneckerCurvature, fitted: Fitted) -> Tensor:
    task = fitted.task
    queries, samples = (
        per_sample_gradients(
            task.denoiser,
            task.selected,
            task._losses,
            inputs_of([torch.stack(part) for part in zip(*draws, strict=True)]),
        )
        for draws in (fitted.epochs[1][:6], fitted.epochs[0])
    )
    rows = curvature.inverse(queries, DAMPING)
    products = [rows[name].flatten(1).double() @ samples[name].flatten(1).double().T for name in rows]
    return torch.stack(products).sum(0)


def assert_equal_scores(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error < 1e-4, float(error)


def test_equal_scores_and_either_reads_the_other(fitted: Fitted) -> None:
    ours = load_curvature(fitted.run / "curvature.safetensors")
    assert isinstance(ours, KroneckerCurvature)
    theirs = analyzer(fitted)
    folder = fit(theirs, fitted)
    expected = pairwise_scores(theirs, fitted, "theirs")
    assert_equal_scores(our_scores(ours, fitted), expected)
    read = load_curvature(folder)
    assert isinstance(read, KroneckerCurvature)
    assert_equal_scores(our_scores(read, fitted), expected)
    assert_equal_scores(pairwise_scores(theirs, fitted, fitted.kind), expected)


def test_equal_factors_in_the_same_files(fitted: Fitted) -> None:
    theirs = analyzer(fitted)
    folder = fit(theirs, fitted)
    names = {path.name for path in (fitted.run / f"factors_{fitted.kind}").glob("*.safetensors")}
    assert names == {path.name for path in folder.glob("*.safetensors")}
    ours = theirs.load_covariance_matrices(fitted.kind)
    for name, factors in theirs.load_covariance_matrices("theirs").items():
        assert ours[name].keys() == factors.keys()
        for layer, factor in factors.items():
            torch.testing.assert_close(ours[name][layer], factor, rtol=1e-3, atol=1e-5 * float(factor.abs().max()))
