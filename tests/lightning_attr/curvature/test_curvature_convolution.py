"""EK-FAC of convolutions, with biases and without, against brute force and dense matrices, in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_attr.curvature import Damping, KroneckerCurvature
from lightning_attr.curvature.sums import EKFACSums
from lightning_attr.models import Inputs


class Network(nn.Module):
    """A strided convolution with a bias, and two that see one place at a time, of two channels and of one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.point = nn.Conv2d(2, 3, 1, bias=False)
        self.single = nn.Conv2d(1, 2, 1)

    def forward(self, latent: Tensor) -> Tensor:
        point = self.point(torch.tanh(self.wide(latent)))
        return self.single(torch.tanh(point).sum(1, keepdim=True))  # type: ignore[no-any-return]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().double().requires_grad_(False)


LATENT = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def of(latent: Tensor) -> Inputs:
    return Inputs(latent, {}, torch.zeros(len(latent)), latent)


def losses(network: nn.Module, inputs: Inputs) -> Tensor:
    return (network(inputs.latent) - 1).square().flatten(1).sum(1)  # type: ignore[no-any-return]


def fitted(network: Network) -> KroneckerCurvature:
    sums = EKFACSums(network, dict(network.named_parameters()), {})
    for part in range(2):
        sums.enter(part, lambda tensor: tensor)
        for latent in LATENT.split(4):
            sums.add(sums.of_batch(network, losses, of(latent)))
    return sums.curvature({"weights": "test"})


def matrix(gradients: dict[str, Tensor], layer: str) -> Tensor:
    """The gradients by a layer, [B, O, I]; a bias is the last column."""
    weight = gradients[f"{layer}.weight"].flatten(2)
    bias = gradients.get(f"{layer}.bias")
    return weight if bias is None else torch.cat([weight, bias[..., None]], dim=-1)


def brute_force(network: Network) -> dict[str, Tensor]:
    """Gradient of every sample, one backward pass each."""
    network.requires_grad_(True)
    names = dict(network.named_parameters())
    each = [torch.autograd.grad(losses(network, of(latent)).sum(), list(names.values())) for latent in LATENT.split(1)]
    network.requires_grad_(False)
    return {name: torch.stack(parts) for name, parts in zip(names, zip(*each, strict=True), strict=True)}


def test_eigenvalues_are_mean_squares_of_rotated_gradients(network: Network) -> None:
    gradients = brute_force(network)
    for name, layer in fitted(network).layers.items():
        rotated = layer.gradient.eigenvectors.T @ matrix(gradients, name) @ layer.activation.eigenvectors
        torch.testing.assert_close(layer.eigenvalues, rotated.square().mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("leading", [(), (4,)])
def test_inverse_solves_the_dense_system(network: Network, leading: tuple[int, ...]) -> None:
    curvature = fitted(network)
    generator = torch.Generator().manual_seed(2)
    queries = {
        name: torch.randn(*leading, *weight.shape, generator=generator, dtype=torch.float64)
        for name, weight in network.named_parameters()
    }
    found = curvature.inverse(queries, Damping(0.3))
    assert {name: part.shape for name, part in found.items()} == {name: part.shape for name, part in queries.items()}
    if not leading:
        queries, found = ({name: part[None] for name, part in parts.items()} for parts in (queries, found))
    for name, layer in curvature.layers.items():
        basis = torch.kron(layer.gradient.eigenvectors, layer.activation.eigenvectors)
        dense = basis @ torch.diag(layer.eigenvalues.reshape(-1) + 0.3) @ basis.T
        expected = torch.linalg.solve(dense, matrix(queries, name).flatten(1).T).T
        torch.testing.assert_close(matrix(found, name).flatten(1), expected, rtol=1e-9, atol=1e-12)


def test_low_precision_ends_with_the_network(network: Network) -> None:
    """Under autocast the gradients are turned and multiplied in the weights' precision."""
    network.float()
    sums = EKFACSums(network, dict(network.named_parameters()), {})
    latent = LATENT[:1].float()  # the root of one sample's square is what was rotated
    sums.add(sums.of_batch(network, losses, of(latent)))
    sums.enter(1, lambda tensor: tensor)
    squares = sums.of_batch(network, losses, of(latent))
    with torch.autocast("cpu", torch.bfloat16):
        low = sums.of_batch(network, losses, of(latent))
    assert not torch.equal(low, squares)
    assert (low - squares).norm() < 0.05 * squares.norm()
    roots = low[:-1].sqrt()
    assert not torch.equal(roots, roots.bfloat16().double())
