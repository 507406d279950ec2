"""Projected gradients against the Kronecker matrices that are never formed."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from small_network import model_of, small_batch, small_network
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.gradients import Output, SampleGradients, sample_gradients
from lightning_attr.models.unet import UNet
from lightning_attr.noise import Draws
from lightning_attr.projection import Projection, rademacher

TWO = Output(draws=Draws(2))


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    return small_network()


def explicit(projection: Projection, gradients: SampleGradients) -> Tensor:
    """Multiply every whole gradient with the Kronecker product of the matrices of its sides."""
    parts = []
    for name, gradient in gradients.named():
        matrix = gradient.flatten(2) if gradient.ndim > 2 else gradient[..., None]
        side = "text" if name in gradients.at_output.get("text", {}) else f"{name}/in"
        left, right = (
            signs(projection.seed, key, size, rank)
            for key, size, rank in zip((f"{name}/out", side), matrix.shape[1:], projection.ranks[name], strict=True)
        )
        parts.append(matrix.flatten(1) @ torch.kron(left, right))
    return torch.cat(parts, dim=1)


def signs(seed: int, key: str, size: int, rank: int) -> Tensor:
    return torch.eye(size).double() if rank == size else rademacher(seed, key, size, rank).double()


@pytest.mark.parametrize("weights", ["cross_kv", "cross_attention", "attention", "conv", "norm_out|conv_in"])
def test_projection_is_that_of_kronecker_matrices(network: UNet2DConditionModel, weights: str) -> None:
    selected = UNet(network).select(weights)
    gradients = sample_gradients(model_of(network), selected, small_batch([4, 5]), TWO)
    projection = Projection(selected, 30 * len(selected), seed=3)
    found = projection(gradients)
    assert len(selected) <= found.shape[1] <= 30 * len(selected)
    torch.testing.assert_close(found, explicit(projection, gradients), rtol=1e-9, atol=1e-14)


def test_at_full_rank_nothing_is_lost(network: UNet2DConditionModel) -> None:
    selected = UNet(network).select("cross_attention")
    gradients = sample_gradients(model_of(network), selected, small_batch([4, 5]), TWO)
    whole = len(selected) * max(weight.numel() for weight in selected.values())
    torch.testing.assert_close(Projection(selected, whole)(gradients), gradients.flat())


@pytest.mark.parametrize("weights", ["cross_kv", pytest.param("attn1", marks=pytest.mark.slow)])
def test_inner_products_are_kept_on_average(network: UNet2DConditionModel, weights: str) -> None:
    selected = UNet(network).select(weights)
    gradients = sample_gradients(model_of(network), selected, small_batch([4, 5, 9]), TWO)
    exact = gradients.flat() @ gradients.flat().T

    def error(dimension: int, seeds: int) -> float:
        """Error of the mean over seeds, relative to the norms."""
        products = []
        for seed in range(seeds):
            rows = Projection(selected, dimension * len(selected), seed)(gradients)
            products.append(rows @ rows.T)
        norms = exact.diagonal().sqrt()
        return float(((torch.stack(products).mean(0) - exact) / norms / norms[:, None]).abs().max())

    assert error(16, 400) < 0.1  # unbiased
    assert error(16, 400) < error(16, 4)
    assert error(100, 20) < error(4, 20)


def test_a_seed_is_a_projection(network: UNet2DConditionModel) -> None:
    selected = UNet(network).select("cross_kv")
    gradients = sample_gradients(model_of(network), selected, small_batch([4, 5]), TWO)
    rows = Projection(selected, 100, seed=1)(gradients)
    assert torch.equal(Projection(selected, 100, seed=1)(gradients), rows)
    assert not torch.allclose(Projection(selected, 100, seed=2)(gradients), rows)


def test_fewer_dimensions_than_weights_are_refused(network: UNet2DConditionModel) -> None:
    selected = UNet(network).select("cross_kv")
    with pytest.raises(UserError, match=f"method.projection: found 3, expected at least {len(selected)}"):
        Projection(selected, 3)
