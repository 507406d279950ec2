"""The sums over samples that become a curvature: buffers of one run, the same on every rank.

A batch's share is one flat vector in float64, so that the ranks add theirs in one reduction.

Shapes: B samples, I inputs and O outputs of a layer, S numbers summed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_attr.console import warn
from lightning_attr.curvature.diagonal import DiagonalCurvature, squared_sums
from lightning_attr.curvature.files import AnyCurvature
from lightning_attr.curvature.kronecker import (
    Factor,
    KroneckerCurvature,
    decomposed,
    layer_curvature,
    layer_of,
    rotated,
    second_moment,
    squared_rotated,
    with_one,
)
from lightning_attr.errors import UserError
from lightning_attr.gradients import per_sample_gradients
from lightning_attr.layers import Call, Layer, captured, is_linear, linear_weights
from lightning_attr.models import Conditions, Inputs

Losses = Callable[[nn.Module, Inputs], Tensor]
Shapes = Mapping[str, Sequence[int]]


class Sums(nn.Module, ABC):
    """Sums over samples. What is summed may change from one part of the run to the next.

    Attributes:
        parts: Into how many equal parts of the epochs the run is divided.
    """

    parts: ClassVar[int] = 1

    def enter(self, part: int, from_rank_zero: Callable[[Tensor], Tensor]) -> None:
        """Get ready for a batch of this part of the run.

        Args:
            part: From 0.
            from_rank_zero: Replaces a tensor by that of rank 0.
        """

    @abstractmethod
    def of_batch(self, network: nn.Module, losses: Losses, inputs: Inputs) -> Tensor:
        """Return the batch's share, float64 [S].

        Args:
            network: The denoiser.
            losses: ``(network, inputs) -> [B]``.
            inputs: Of the losses.
        """

    @abstractmethod
    def add(self, share: Tensor) -> None:
        """Add the sum of the ranks' shares."""

    @abstractmethod
    def curvature(self, settings: Mapping[str, Any]) -> AnyCurvature:
        """Return the curvature that the sums amount to."""


class DiagonalSums(Sums):
    """Sums of squared per-sample gradients.

    Args:
        network: The denoiser.
        selected: The weights, of any layers.
    """

    def __init__(self, network: nn.Module, selected: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        if linear_weights(network, selected) is None:
            warn("weights: not all of linear layers; per-sample gradients go through torch.func, which is slow")
        self.selected = dict(selected)
        self._shapes = {**{name: weight.shape for name, weight in selected.items()}, "count": ()}
        self.squares: Tensor
        self.register_buffer("squares", zeros(self._shapes))

    def of_batch(self, network: nn.Module, losses: Losses, inputs: Inputs) -> Tensor:
        """Return the sum of the squared gradients, and the number of samples."""
        sums = squared_sums(per_sample_gradients(network, self.selected, losses, inputs))
        return flat({**sums, "count": len(inputs.latent)}, self._shapes)

    def add(self, share: Tensor) -> None:
        """Add the ranks' squares."""
        self.squares += share

    def curvature(self, settings: Mapping[str, Any]) -> DiagonalCurvature:
        """Return the mean."""
        fisher = cut(self.squares.cpu(), self._shapes)
        count = fisher.pop("count")
        return DiagonalCurvature({name: part / count for name, part in fisher.items()}, settings)


class KFACSums(Sums):
    """Second moments of the inputs of linear layers, and of the gradients at their outputs.

    Layers that see the same condition share one input moment.

    Args:
        network: The denoiser.
        selected: Weights and biases of linear layers.
        shared: The layers whose input is a condition itself, and which.

    Raises:
        UserError: A weight is not of a linear layer.
    """

    kind: ClassVar[Literal["kfac", "ekfac"]] = "kfac"

    def __init__(self, network: nn.Module, selected: Mapping[str, nn.Parameter], shared: Mapping[str, str]) -> None:
        super().__init__()
        self.layers = linear_layers(network, selected, self.kind)
        self.biased = {layer_of(name) for name in selected if name.endswith(".bias")}
        self.inputs = {name: self._input(name, shared) for name in self.layers}
        self._moments = {key: (size, size) for key, size in self._sizes().items()}
        self._moments_and_counts = {**self._moments, **{f"{key} count": () for key in self._moments}}
        self.moments: Tensor
        self.register_buffer("moments", zeros(self._moments_and_counts))

    def _input(self, layer: str, shared: Mapping[str, str]) -> str:
        """Return what a layer's input is called: the same for layers that share it."""
        name = shared.get(layer, f"input of {layer}")
        return f"{name} and one" if layer in self.biased else name

    def _sizes(self) -> dict[str, int]:
        """Return the size of every factor by its name."""
        inputs = {name: layer.weight[0].numel() + (name in self.biased) for name, layer in self.layers.items()}
        sizes = {self.inputs[name]: size for name, size in inputs.items()}
        return {**sizes, **{name: len(layer.weight) for name, layer in self.layers.items()}}

    def of_batch(self, network: nn.Module, losses: Losses, inputs: Inputs) -> Tensor:
        """Return the sums of the second moments over tokens, with the number of tokens of each."""
        sums: dict[str, Tensor | int] = {}
        for key, rows in self._rows(self._calls(network, losses, inputs)):
            sums[key] = sums.get(key, 0) + second_moment(rows)
            sums[f"{key} count"] = sums.get(f"{key} count", 0) + rows.shape[:-1].numel()
        return flat(sums, self._moments_and_counts)

    def _calls(self, network: nn.Module, losses: Losses, inputs: Inputs) -> list[tuple[str, Tensor, Tensor]]:
        """Return layer, input and gradient at the output of every call; inputs shared by layers are one tensor."""
        names: dict[nn.Module, str] = {layer: name for name, layer in self.layers.items()}
        extended: dict[tuple[str, int], Tensor] = {}
        result = []
        for call in captured(self.layers, lambda: losses(network, inputs)):
            name = names[call.layer]
            key = (self.inputs[name], id(call.input))
            if key not in extended:
                rows = call.input_rows()
                extended[key] = with_one(rows) if name in self.biased else rows
            result.append((name, extended[key], call.gradient_rows()))
        return result

    def _rows(self, calls: Sequence[tuple[str, Tensor, Tensor]]) -> list[tuple[str, Tensor]]:
        """Return what each factor is a moment of; a shared input counts once."""
        inputs = {(self.inputs[name], id(x)): x for name, x, _ in calls}
        return [(key, x) for (key, _), x in inputs.items()] + [(name, g) for name, _, g in calls]

    def add(self, share: Tensor) -> None:
        """Add the ranks' moments."""
        self.moments += share

    def factors(self) -> dict[str, Factor]:
        """Return the eigendecomposition of every factor.

        Raises:
            UserError: A sum is not finite.
        """
        if not bool(torch.isfinite(self.moments).all()):
            raise not_finite()
        sums = cut(self.moments, self._moments_and_counts)
        return {key: decomposed(sums[key], int(sums[f"{key} count"])) for key in self._moments}

    def curvature(self, settings: Mapping[str, Any]) -> KroneckerCurvature:
        """Return the products of the factors."""
        factors = {key: on_cpu(factor) for key, factor in self.factors().items()}
        layers = {name: layer_curvature(factors[self.inputs[name]], factors[name]) for name in self.layers}
        return KroneckerCurvature(self.kind, layers, settings)


class EKFACSums(KFACSums):
    """First the moments of K-FAC, then the squares of per-sample gradients along the factors' eigenvectors.

    The eigenvectors are buffers as well: a resumed run goes on with the very same ones, and so do all ranks.

    Args:
        network: The denoiser.
        selected: Weights and biases of linear layers.
        shared: The layers whose input is a condition itself, and which.
    """

    kind = "ekfac"
    parts = 2

    def __init__(self, network: nn.Module, selected: Mapping[str, nn.Parameter], shared: Mapping[str, str]) -> None:
        super().__init__(network, selected, shared)
        sizes = self._sizes()
        self._eigenvalues = {key: (size,) for key, size in sizes.items()}
        self._squares = {name: (sizes[name], sizes[self.inputs[name]]) for name in self.layers} | {"count": ()}
        self.decomposed: Tensor
        self.eigenvectors: Tensor
        self.eigenvalues: Tensor
        self.squares: Tensor
        self.register_buffer("decomposed", torch.zeros((), dtype=torch.bool))
        self.register_buffer("eigenvectors", zeros(self._moments))
        self.register_buffer("eigenvalues", zeros(self._eigenvalues))
        self.register_buffer("squares", zeros(self._squares))

    def enter(self, part: int, from_rank_zero: Callable[[Tensor], Tensor]) -> None:
        """Decompose the moments before the first batch of the second part; there is no way back."""
        if part == 0 or self.decomposed:
            return
        factors = self.factors()
        vectors = flat({key: factor.eigenvectors for key, factor in factors.items()}, self._moments)
        values = flat({key: factor.eigenvalues for key, factor in factors.items()}, self._eigenvalues)
        self.eigenvectors.copy_(from_rank_zero(vectors))
        self.eigenvalues.copy_(from_rank_zero(values))
        self.decomposed.fill_(True)

    def of_batch(self, network: nn.Module, losses: Losses, inputs: Inputs) -> Tensor:
        """Return the sums of the moments, or those of the squares with the number of samples."""
        if not self.decomposed:
            return super().of_batch(network, losses, inputs)
        eigenvectors = {key: part.to(inputs.latent) for key, part in cut(self.eigenvectors, self._moments).items()}
        shared: dict[int, Tensor] = {}
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.layers}
        for name, x, gradient in self._calls(network, losses, inputs):
            if id(x) not in shared:
                shared[id(x)] = rotated(x, eigenvectors[self.inputs[name]])
            calls[name].append((shared[id(x)], rotated(gradient, eigenvectors[name])))
        squares = {name: squared_rotated(of_layer) for name, of_layer in calls.items()}
        return flat({**squares, "count": len(inputs.latent)}, self._squares)

    def add(self, share: Tensor) -> None:
        """Add the ranks' moments or squares."""
        if self.decomposed:
            self.squares += share
        else:
            super().add(share)

    def factors(self) -> dict[str, Factor]:
        """Return the eigendecomposition of every factor."""
        if not self.decomposed:
            return super().factors()
        counts = cut(self.moments, self._moments_and_counts)
        vectors, values = cut(self.eigenvectors, self._moments), cut(self.eigenvalues, self._eigenvalues)
        return {key: Factor(vectors[key], values[key], int(counts[f"{key} count"])) for key in vectors}

    def curvature(self, settings: Mapping[str, Any]) -> KroneckerCurvature:
        """Return the factors' eigenvectors with the mean squares along them.

        Raises:
            UserError: The run ended before there were any.
        """
        squares = cut(self.squares.cpu(), self._squares)
        count = int(squares["count"])
        if count == 0:
            raise UserError("curvature: the run ended before the second half of trainer.max_epochs, which ekfac needs")
        factors = {key: on_cpu(factor) for key, factor in self.factors().items()}
        layers = {
            name: layer_curvature(factors[self.inputs[name]], factors[name], squares[name] / count, count)
            for name in self.layers
        }
        return KroneckerCurvature(self.kind, layers, settings)


SUMS: Mapping[str, type[KFACSums]] = {sums.kind: sums for sums in (KFACSums, EKFACSums)}


def linear_layers(network: nn.Module, selected: Mapping[str, nn.Parameter], kind: str) -> dict[str, Layer]:
    """Return the layers of the selected weights by name, linear ones and convolutions.

    Raises:
        UserError: A weight is of another layer, or a bias comes without its weight.
    """
    layers: dict[str, Layer] = {}
    for name in selected:
        layer = network.get_submodule(layer_of(name))
        if not is_linear(layer):
            raise UserError(
                f"weights: found {name}, expected weights of linear layers and convolutions alone for kind {kind!r}"
            )
        assert isinstance(layer, Layer)
        if f"{layer_of(name)}.weight" not in selected:
            raise UserError(f"weights: found {name} alone, expected the weight with the bias for kind {kind!r}")
        layers[layer_of(name)] = layer
    return layers


def layers_on(conditions: Conditions, calls: Sequence[Call], layers: Mapping[str, Layer]) -> dict[str, str]:
    """Return the layers whose input is one of ``conditions`` itself in all of their calls, and its name.

    Raises:
        UserError: A layer is never called.
    """
    result = {}
    for name, layer in layers.items():
        inputs = [call.input for call in calls if call.layer is layer]
        if not inputs:
            raise UserError(f"weights: {name} takes no part in the network's output, expected layers that do")
        for condition, value in conditions.items():
            if all(x is value for x in inputs):
                result[name] = condition
    return result


def not_finite() -> UserError:
    """Return the error of a model whose gradients are infinite."""
    return UserError("curvature: not finite; the checkpoint's weights give infinite gradients")


def on_cpu(factor: Factor) -> Factor:
    """Return the factor in main memory."""
    return Factor(factor.eigenvectors.cpu(), factor.eigenvalues.cpu(), factor.tokens)


def zeros(shapes: Shapes) -> Tensor:
    """Return a flat vector with a place for tensors of these shapes, float64."""
    return torch.zeros(sum(math.prod(shape) for shape in shapes.values()), dtype=torch.float64)


def flat(values: Mapping[str, Tensor | int], shapes: Shapes) -> Tensor:
    """Return the values side by side in the order of ``shapes``, float64."""
    device = next(value.device for value in values.values() if isinstance(value, Tensor))
    parts = [torch.as_tensor(values[name], dtype=torch.float64, device=device).reshape(-1) for name in shapes]
    return torch.cat(parts)


def cut(vector: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Return views of the parts that :func:`flat` put side by side."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = vector.split(sizes)  # type: ignore[no-untyped-call]
    return {name: part.reshape(tuple(shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
