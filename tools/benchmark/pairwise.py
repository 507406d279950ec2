"""Influence by EK-FAC for all queries, against kronfluence's pairwise scores from the very same factors.

kronfluence scores rows of one forward pass each, so that a sample is as many rows as there are draws, and its score is
their mean. A query's loss is the mean over draws in one measurement, so that it keeps no more preconditioned gradients
than there are queries. All of them fit in one of its batches: it goes through the samples once, too.

Shapes: Q queries, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_attr.artifacts import read_json, write_json
from lightning_attr.curvature import save_factors
from lightning_attr.curvature.kronfluence_layout import ARGUMENTS
from lightning_attr.models import Inputs
from lightning_attr.noise import draw_timesteps, shared_noise
from tools.benchmark.case import BATCH, Case, small_case
from tools.benchmark.one_pass import QUERIES, influence
from tools.benchmark.timing import Figure, Sizes, ratio, seconds

KEY = "one_pass_vs_kronfluence"
AIM = 5.0
TOLERANCE = 1e-3


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure both from the same factors, samples, queries and draws."""
    if find_spec("kronfluence") is None:
        yield Figure(KEY, None, "kronfluence is not installed (extra: peers)", AIM)
        return
    case = small_case(sizes.compared, QUERIES, sizes.timesteps)
    curvature = case.ekfac()
    curvature.save(folder / "curvature.safetensors")
    save_factors(folder / "analysis" / "factors_ekfac", curvature)
    method = influence(folder / "curvature.safetensors", case)
    theirs = PairwiseScores(folder, case)
    error = _difference(case.scores(method, QUERIES), theirs())
    assert error < TOLERANCE, f"scores differ by {error:.1e} of the largest"
    value = ratio(seconds(lambda: case.scores(method, QUERIES)), seconds(theirs), sizes.method_repeats)
    limit = f"equal scores, to {error:.0e} of the largest; the network takes most of the time on both sides"
    yield Figure(KEY, value, limit, AIM)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


class PairwiseScores:
    """kronfluence's scores of a case, [Q, N].

    Args:
        folder: Holds ``analysis/factors_ekfac``.
        case: What is scored.
    """

    def __init__(self, folder: Path, case: Case) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model

        arguments = folder / "analysis" / "factors_ekfac" / ARGUMENTS
        # The network is called once per draw in a query's measurement.
        write_json(arguments, {**read_json(arguments), "has_shared_parameters": True})
        task = _task(case)
        model = prepare_model(deepcopy(case.denoiser), task)
        self.analyzer = Analyzer("analysis", model, task, cpu=True, output_dir=str(folder), disable_tqdm=True)
        self.rows, self.queries = _rows(case), TensorDataset(*_inputs(case.queries))
        self.draws = len(case.draws)

    def __call__(self) -> Tensor:
        """Compute them anew."""
        from kronfluence.arguments import ScoreArguments

        self.analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            self.queries,
            self.rows,
            per_device_query_batch_size=len(self.queries),
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=None),  # a tenth of the mean eigenvalue, our default as well
            overwrite_output_dir=True,
        )
        scores: Tensor = self.analyzer.load_pairwise_scores("scores")["all_modules"]
        return scores.reshape(len(scores), -1, self.draws).mean(2)


def _inputs(batch: Any) -> tuple[Tensor, Tensor]:
    return batch["latent"][:, 0], batch["text"][:, 0]


def _rows(case: Case) -> TensorDataset:
    """Return every sample at every draw: latents, text states, timesteps and noises."""
    latent, text = _inputs(case.samples)
    timesteps, noise = _draws(case)
    draws = torch.arange(len(case.draws)).repeat(len(latent))
    repeated = (part.repeat_interleave(len(case.draws), dim=0) for part in (latent, text))
    return TensorDataset(*repeated, timesteps[draws], noise[draws])


def _draws(case: Case) -> tuple[Tensor, Tensor]:
    timesteps = draw_timesteps(case.draws, case.model.process.levels)
    return timesteps, shared_noise(case.draws, range(len(case.draws)), case.samples["latent"].shape[2:])


def _task(case: Case) -> Any:
    from kronfluence.task import Task

    timesteps, noises = _draws(case)

    class Denoising(Task):  # type: ignore[misc]
        """Losses as kronfluence asks for them."""

        def compute_train_loss(self, batch: tuple[Tensor, ...], model: nn.Module, sample: bool = False) -> Tensor:
            """Return the sum of the losses of rows."""
            latent, text, timesteps, noise = batch
            return case.losses(model, Inputs(latent, {"text": text}, timesteps, noise)).sum()

        def compute_measurement(self, batch: tuple[Tensor, ...], model: nn.Module) -> Tensor:
            """Return the sum of the mean losses of queries."""
            latent, text = batch
            inputs = (
                Inputs(latent, {"text": text}, timestep.expand(len(latent)), noise.expand_as(latent))
                for timestep, noise in zip(timesteps, noises, strict=True)
            )
            return torch.stack([case.losses(model, each).sum() for each in inputs]).mean()

        def get_influence_tracked_modules(self) -> list[str]:
            """Return the layers of the selected weights."""
            return [name.rpartition(".")[0] for name in case.selected]

    return Denoising()
