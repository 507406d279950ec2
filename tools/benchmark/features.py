"""Features of samples for TRAK: ours, against ``traker``'s and against ``vmap(grad)`` with our projection.

All take the mean over the same draws of the gradients by the same weights of the same losses, and keep as many numbers
of it. traker's own parts are called: its gradient computer once per draw, its block-wise projector once on the mean.
(``TRAKer.featurize`` takes one output function per sample; all draws in one would hold their activations together.)

The memory of features is the peak of what torch allocates meanwhile, less the peak of a bare backward pass on the same
batch, which none can do without. The network and the batch do not count.

Shapes: B samples, R numbers kept of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_attr.gradients import Output, SampleGradients, functional_gradients, sample_gradients
from lightning_attr.layers import captured, linear_weights
from lightning_attr.methods import Trak
from lightning_attr.methods.base import Batch
from lightning_attr.models import Inputs
from lightning_attr.noise import draw_timesteps, shared_noise
from lightning_attr.projection import Projection
from tools.benchmark.case import Case, small_case
from tools.benchmark.timing import Figure, Sizes, Spread, ratio, seconds

DIMENSION = 2048
TOLERANCE = 1e-3

Features = Callable[[Batch], Tensor]


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure one batch of samples: each side does the same for every batch."""
    case = small_case(sizes.featured, 1, sizes.timesteps)
    (batch,) = case.batches(sizes.featured)
    ours, functional = Ours(case), FunctionalFeatures(case)
    _check(case, functional.gradients(batch), batch)
    a = seconds(partial(ours, batch))
    memory = partial(_memory, case, batch)
    if find_spec("trak") is None:
        for name, aim in (("features_vs_traker", 3.0), ("feature_memory_vs_traker", 10.0)):
            yield Figure(name, None, "traker is not installed (extra: peers)", aim)
    else:
        traker = TrakerFeatures(case)
        _check(case, traker.gradients(batch), batch)
        value = ratio(a, seconds(partial(traker, batch)), sizes.method_repeats)
        yield Figure("features_vs_traker", value, f"{DIMENSION} numbers of a sample; the network", 3.0)
        value = Spread.of([memory(traker) / memory(ours)])
        yield Figure("feature_memory_vs_traker", value, "beyond a bare backward pass; gradients at the outputs", 10.0)
    value = ratio(a, seconds(partial(functional, batch)), sizes.method_repeats)
    yield Figure("features_vs_vmap", value, "the same projection; the network", 3.0)
    value = Spread.of([memory(functional) / memory(ours)])
    yield Figure("feature_memory_vs_vmap", value, "beyond a bare backward pass; gradients at the outputs", 10.0)


def _check(case: Case, gradients: dict[str, Tensor], batch: Batch) -> None:
    """Check that a peer's gradients are ours."""
    for name, found in sample_gradients(case.model, case.selected, batch, Output(draws=case.draws)).named():
        error = float((gradients[name] - found).abs().max() / found.abs().max())
        assert error < TOLERANCE, f"gradients by {name} differ by {error:.1e} of the largest"


class Ours:
    """What ``Trak`` measures of a batch."""

    def __init__(self, case: Case) -> None:
        self.method = Trak(projection=DIMENSION, output=Output(draws=case.draws))
        self.method.prepare(case.context(1))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the features, [B, R]."""
        return self.method.measure(batch)


class AtDraws:
    """The inputs of the loss, draw by draw."""

    def __init__(self, case: Case) -> None:
        self.timesteps = draw_timesteps(case.draws, case.model.process.levels)
        self.noises = shared_noise(case.draws, range(len(case.draws)), case.samples["latent"].shape[2:])

    def __call__(self, batch: Batch) -> Iterator[Inputs]:
        """Yield the inputs of each draw."""
        latent, text = batch["latent"][:, 0], batch["text"][:, 0]
        for timestep, noise in zip(self.timesteps, self.noises, strict=True):
            # vmap takes no expanded tensors apart where a kernel writes into them.
            yield Inputs(latent, {"text": text}, timestep.repeat(len(latent)), noise.expand_as(latent).contiguous())


class FunctionalFeatures:
    """Gradients by ``vmap(grad)``, by the selected weights alone, and our projection of the whole matrices."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.inputs = AtDraws(case)
        self.projection = Projection(case.selected, DIMENSION)

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Return the gradients, [B, *shape] by name."""
        return _mean(self._at_draw(inputs) for inputs in self.inputs(batch))

    def _at_draw(self, inputs: Inputs) -> dict[str, Tensor]:
        return functional_gradients(self.case.denoiser, self.case.selected, self.case.losses, inputs)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the features, [B, R]."""
        return self.projection(SampleGradients({"text": batch["text"][:, 0]}, dense=self.gradients(batch)))


class TrakerFeatures:
    """Gradients and projection by traker."""

    def __init__(self, case: Case) -> None:
        from trak.gradient_computers import FunctionalGradientComputer
        from trak.projectors import BasicProjector, ProjectionType

        self.inputs = AtDraws(case)
        size = sum(weight.numel() for weight in case.selected.values())
        names = list(case.selected)
        self.computer = FunctionalGradientComputer(
            case.denoiser, _model_output(case), size, torch.float32, torch.device("cpu"), grad_wrt=names
        )
        self.projector = BasicProjector(size, DIMENSION, 0, ProjectionType.rademacher, torch.device("cpu"))

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Return the gradients, [B, *shape] by name."""
        return _mean(self.computer.compute_per_sample_grad(inputs) for inputs in self.inputs(batch))

    def __call__(self, batch: Batch) -> Tensor:
        """Return the features, [B, R]."""
        features: Tensor = self.projector.project(self.gradients(batch), model_id=0)
        return features


def _model_output(case: Case) -> Any:
    from trak.modelout_functions import AbstractModelOutput

    class Denoising(AbstractModelOutput):  # type: ignore[misc]
        """The loss of one sample as traker asks for it."""

        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model: nn.Module, weights: Any, buffers: Any, *sample: Tensor) -> Tensor:
            """Return the loss of a sample."""

            def call(*inputs: Tensor, **conditions: Tensor) -> Any:
                return torch.func.functional_call(model, (weights, buffers), inputs, conditions)

            inputs = tuple(part.unsqueeze(0) for part in sample)
            return case.losses(call, inputs).squeeze(0)  # type: ignore[arg-type]

        def get_out_to_loss_grad(self, model: nn.Module, weights: Any, buffers: Any, batch: Sequence[Tensor]) -> Tensor:
            """Return the derivative of the loss by the output, which is the loss itself: ones, [B, 1]."""
            return torch.ones(len(batch[0]), 1)

    return Denoising()


def _mean(by_draw: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean over draws; only the sum and one draw are in memory at a time."""
    total, draws = next(by_draw), 1
    for one in by_draw:
        for name, value in one.items():
            total[name] += value
        draws += 1
    return {name: value.div_(draws) for name, value in total.items()}


def _memory(case: Case, batch: Batch, features: Features) -> int:
    """Return the peak of bytes that features take beyond a bare backward pass."""
    layers = linear_weights(case.denoiser, case.selected) or {}
    inputs = next(AtDraws(case)(batch))
    bare = _peak(lambda: captured(layers, lambda: case.losses(case.denoiser, inputs)))
    return max(_peak(lambda: features(batch)) - bare, 1)


def _peak(work: Callable[[], object]) -> int:
    """Return by how many bytes torch's allocations grow at most during some work."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    allocations = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in allocations:
        held += change
        peak = max(peak, held)
    return peak
