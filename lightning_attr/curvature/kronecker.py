"""K-FAC and EK-FAC: a layer's Fisher as a Kronecker product, and its inverse applied as factors.

A linear layer sees an input x and gets a gradient g at its output, at each of its tokens; a convolution's tokens are
the places of its output, and x the patch under its kernel. K-FAC (Martens and Grosse,
2015) takes the layer's Fisher for ``E[x x^T] (x) E[g g^T]``, means over tokens; its eigenvectors are products of the
factors' and its eigenvalues products of theirs. EK-FAC (George et al., 2018) keeps the eigenvectors and replaces the
eigenvalues by what the per-sample gradients have along them, ``E[(U_g^T G U_x)^2]`` with G = ``sum over tokens of
g x^T``: the best diagonal in that basis.

Where a layer has a bias among the weights, its input has a one appended, and the bias is the last column of its weight.

Shapes: B samples, L tokens, I inputs, O outputs of a layer; C x H x W the kernel of a convolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.expect import expect_settings, expect_tensors
from lightning_attr.curvature.damping import Damping
from lightning_attr.curvature.errors import check_shape, missing
from lightning_attr.errors import UserError
from lightning_attr.precision import outside_autocast


class Factor(NamedTuple):
    """One factor of a layer's Fisher: the eigendecomposition of a second moment.

    Attributes:
        eigenvectors: [n, n], one a column.
        eigenvalues: [n], ascending, of the mean over tokens.
        tokens: How many tokens it is a mean over.
    """

    eigenvectors: Tensor
    eigenvalues: Tensor
    tokens: int

    def moment(self) -> Tensor:
        """Return the second moment that it decomposes, [n, n]."""
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T


class LayerCurvature(NamedTuple):
    """The Fisher of one linear layer.

    Attributes:
        activation: Of its input, n = I; one object for all layers that see the same input.
        gradient: Of the gradient at its output, n = O.
        eigenvalues: [O, I], of the Fisher along the products of the factors' eigenvectors.
        samples: How many per-sample gradients the eigenvalues are a mean over; of K-FAC 0.
    """

    activation: Factor
    gradient: Factor
    eigenvalues: Tensor
    samples: int = 0

    @outside_autocast
    def inverse(self, gradient: Tensor, damping: Damping, name: str) -> Tensor:
        """Return ``(F + damping)^-1`` times the gradient [..., O, I], in its type."""
        damped = damping.added(self.eigenvalues, f"eigenvalues of {name}")
        inputs, outputs = (factor.eigenvectors.to(gradient) for factor in (self.activation, self.gradient))
        rotated = outputs.T @ gradient @ inputs
        return outputs @ (rotated * damped.reciprocal().to(gradient)) @ inputs.T

    def finite(self) -> bool:
        """Return whether all eigenvalues are finite."""
        return bool(torch.isfinite(self.eigenvalues).all())


@dataclass(frozen=True)
class KroneckerCurvature:
    """K-FAC or EK-FAC of linear layers.

    Attributes:
        kind: Which of the two.
        layers: The Fisher of each layer by the layer's name.
        settings: How it was fitted: weights, draws, count, digests.
    """

    kind: Literal["kfac", "ekfac"]
    layers: Mapping[str, LayerCurvature]
    settings: Mapping[str, Any]

    def inverse(self, gradients: Mapping[str, Tensor], damping: Damping) -> dict[str, Tensor]:
        """Return ``(F + damping)^-1 g`` for the named gradients, in the gradients' type.

        Args:
            gradients: [..., O, I] of ``LAYER.weight``, or [..., O, C, H, W] of a convolution's, and [..., O] of
                ``LAYER.bias``; any leading axes. A layer's weight and bias are one matrix, so that they come together.
            damping: Added to the eigenvalues of each layer.

        Raises:
            UserError: A layer has no curvature here, has one without the bias or with it, or zero eigenvalues and no
                damping.
        """
        layers = list(dict.fromkeys(layer_of(name) for name in gradients))
        for layer in layers:
            if layer not in self.layers:
                raise missing(layer, self.settings)
        settled = damping.settled([self.layers[layer].eigenvalues for layer in layers])
        result: dict[str, Tensor] = {}
        for layer in layers:
            curvature = self.layers[layer]
            weight, bias = gradients.get(f"{layer}.weight"), gradients.get(f"{layer}.bias")
            outputs, inputs = curvature.eigenvalues.shape
            matrix = None if weight is None else as_matrix(weight, outputs, inputs - (bias is not None))
            joined = join(matrix, bias, layer)
            check_shape(layer, joined, curvature.eigenvalues.shape)
            inverse = curvature.inverse(joined, settled, layer)
            if f"{layer}.bias" in gradients:
                result[f"{layer}.bias"] = inverse[..., -1]
                inverse = inverse[..., :-1]
            result[f"{layer}.weight"] = inverse.reshape(gradients[f"{layer}.weight"].shape)
        return {name: result[name] for name in gradients}

    def finite(self) -> bool:
        """Return whether all eigenvalues are finite."""
        return all(layer.finite() for layer in self.layers.values())

    def save(self, path: str | Path) -> None:
        """Write ``curvature.safetensors``. A factor that layers share is in it once."""
        tensors: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        owners: dict[int, str] = {}
        for name, layer in self.layers.items():
            owner = owners.setdefault(id(layer.activation), name)
            for key, factor in ((f"activation/{owner}", layer.activation), (f"gradient/{name}", layer.gradient)):
                tensors[f"{key}/eigenvectors"], tensors[f"{key}/eigenvalues"] = factor[:2]
                counts[key] = factor.tokens
            if self.kind == "ekfac":
                tensors[f"eigenvalues/{name}"] = layer.eigenvalues
                counts[f"eigenvalues/{name}"] = layer.samples
        layers = {name: owners[id(layer.activation)] for name, layer in self.layers.items()}
        # "layers" says whose activation factor each layer has.
        save_tensors(
            path, "curvature", tensors, {**self.settings, "kind": self.kind, "layers": layers, "counts": counts}
        )

    @classmethod
    def from_tensors(cls, path: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> KroneckerCurvature:
        """Put together what :meth:`save` wrote into a file.

        Raises:
            UserError: It holds something else.
        """
        settings = dict(settings)
        _check(path, tensors, settings)
        kind, owners, counts = (settings.pop(key) for key in ("kind", "layers", "counts"))

        def factor(key: str) -> Factor:
            return Factor(tensors[f"{key}/eigenvectors"], tensors[f"{key}/eigenvalues"], counts[key])

        activations = {owner: factor(f"activation/{owner}") for owner in set(owners.values())}
        layers = {}
        for name, owner in owners.items():
            key = f"eigenvalues/{name}"
            layers[name] = layer_curvature(
                activations[owner], factor(f"gradient/{name}"), tensors.get(key), counts.get(key, 0)
            )
        return cls(kind, layers, settings)


def _check(path: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    expect_settings(path, settings, {"kind": str, "layers": dict, "counts": dict})
    owners: Mapping[str, str] = settings["layers"]
    expected: dict[str, str] = {}
    counted: list[str] = []
    expect_settings(f"{path}: layers", owners, dict.fromkeys(owners, str))
    for name, owner in owners.items():
        for part, size in ((f"activation/{owner}", f"I:{owner}"), (f"gradient/{name}", f"O:{name}")):
            expected |= {f"{part}/eigenvectors": f"float {size} {size}", f"{part}/eigenvalues": f"float {size}"}
            counted.append(part)
        if settings["kind"] == "ekfac":
            expected[f"eigenvalues/{name}"] = f"float O:{name} I:{owner}"
            counted.append(f"eigenvalues/{name}")
    expect_tensors(path, tensors, expected)
    expect_settings(f"{path}: counts", settings["counts"], dict.fromkeys(counted, int))


def layer_curvature(
    activation: Factor, gradient: Factor, eigenvalues: Tensor | None = None, samples: int = 0
) -> LayerCurvature:
    """Return the Fisher of a layer: K-FAC where no corrected eigenvalues [O, I] are given, EK-FAC where they are."""
    if eigenvalues is None:
        eigenvalues = torch.outer(gradient.eigenvalues, activation.eigenvalues)
    return LayerCurvature(activation, gradient, eigenvalues, samples)


def layer_of(name: str) -> str:
    """Return the layer that a parameter belongs to."""
    return name.rpartition(".")[0]


def as_matrix(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    """Return the gradient by a layer's weight as [..., O, I], where it may be a convolution's [..., O, C, H, W].

    Args:
        weight: The gradient; any leading axes.
        outputs: O.
        inputs: I, which is C * H * W, without the one of a bias.
    """
    is_matrix = weight.shape[-2:] == (outputs, inputs)
    return weight if is_matrix or weight.shape[-3:].numel() != inputs else weight.flatten(-3)


def join(weight: Tensor | None, bias: Tensor | None, layer: str) -> Tensor:
    """Return the gradient by a layer's weight [..., O, I] with that by its bias [..., O] as one more column.

    Raises:
        UserError: There is no weight.
    """
    if weight is None:
        raise UserError(f"weights: found {layer}.bias alone, expected the weight with it for a Kronecker product")
    return weight if bias is None else torch.cat([weight, bias[..., None]], dim=-1)


def with_one(inputs: Tensor) -> Tensor:
    """Append a one to every input [..., I]: the input of the bias."""
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)


def second_moment(rows: Tensor) -> Tensor:
    """Return the sum of ``row row^T`` over all rows [..., n], float64 [n, n]."""
    rows = rows.detach().reshape(-1, rows.shape[-1]).to(torch.float64)
    return rows.T @ rows


def decomposed(total: Tensor, tokens: int) -> Factor:
    """Return the eigendecomposition of ``total / tokens``, [n, n].

    Eigenvalues that are zero but for rounding are zero: a direction never seen must not look like one with a little
    curvature, whose inverse is huge.
    """
    moment = total / tokens
    eigenvalues, eigenvectors = torch.linalg.eigh((moment + moment.T) / 2)
    rounding = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    return Factor(eigenvectors, torch.where(eigenvalues > rounding, eigenvalues, 0), tokens)


@outside_autocast
def rotated(rows: Tensor, eigenvectors: Tensor) -> Tensor:
    """Return rows [..., n] in the basis of the eigenvectors [n, n], also under autocast in the rows' precision."""
    return rows @ eigenvectors.to(rows)


@outside_autocast
def squared_rotated(calls: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum over samples of their squared gradients in the basis of the eigenvectors, float64 [O, I].

    Args:
        calls: Of one layer, for each time that it was called: its input [B, ..., I] times the activation's
            eigenvectors, and the gradient at its output [B, ..., O] times the gradient's.
    """
    total: Tensor | float = 0.0
    for inputs, gradient in calls:
        x_BLI, g_BLO = (part.reshape(len(part), -1, part.shape[-1]) for part in (inputs, gradient))
        total = total + g_BLO.transpose(1, 2) @ x_BLI
    assert isinstance(total, Tensor)
    return total.to(torch.float64).square().sum(0)
