"""Gauss-Newton products and the way back through virtual steps, against dense matrices and derivatives of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from miniature import Project
from small_network import model_of, small_network
from torch import Tensor

from lightning_attr.models import Inputs, Model, Objective, load
from lightning_attr.second_moments import adam_diagonal, adam_of
from lightning_attr.virtual_steps import (
    batch_loss,
    gauss_newton,
    held_by_backward,
    loss_gradient,
    scaled_predictions,
    step_back,
)

#: Of a convolution, a linear layer of the timestep, and of attention on the latent and on the text.
SOME = r"conv_in\.weight|mid_block.*(time_emb_proj|attn1\.to_q|attn2\.to_[kv])\.weight"


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    return small_network()


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    latent, noise = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(3, 5, 12, generator=generator, dtype=torch.float64)
    return Inputs(latent, {"text": text}, torch.tensor([10, 400, 900]), noise)


@pytest.fixture(params=["none", "min_snr"])
def model(request: pytest.FixtureRequest, network: UNet2DConditionModel) -> Model:
    return replace(model_of(network), objective=Objective(weighting=request.param))


def some(model: Model) -> dict[str, Tensor]:
    selected = {name: weight.detach() for name, weight in model.select(SOME).items()}
    assert len(selected) == 6
    return selected


def dense(model: Model, inputs: Inputs, weights: dict[str, Tensor]) -> Tensor:
    """The Gauss-Newton matrix of the mean loss of a batch, [P, P], from the whole Jacobian of the network."""
    noisy, _ = model.process.noised(inputs.latent, inputs.noise, inputs.timesteps)

    def predicted(chosen: dict[str, Tensor]) -> Tensor:
        named = {"encoder_hidden_states": inputs.conditions["text"]}
        called = torch.func.functional_call(model.network, chosen, (noisy, inputs.timesteps), named)
        return called.sample.flatten(1)  # type: ignore[no-any-return]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        by_name = torch.func.jacrev(predicted, chunk_size=64)(weights)
    jacobian = torch.cat([by_name[name].flatten(2) for name in weights], dim=2)  # [B, numbers, P]
    counts = model.process.weights(model.weighting, inputs.timesteps) if model.weighting != "none" else torch.ones(3)
    scale = 2 * counts.double() / (jacobian.shape[0] * jacobian.shape[1])
    return torch.einsum("b,bnp,bnq->pq", scale, jacobian, jacobian)


def flat(named: dict[str, Tensor], axes: int = 0) -> Tensor:
    return torch.cat([value.flatten(axes) for value in named.values()], dim=axes)


@pytest.mark.parametrize(
    "chunk", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)]
)
def test_products_are_those_of_the_dense_matrix(model: Model, inputs: Inputs, chunk: int | None) -> None:
    weights, generator = some(model), torch.Generator().manual_seed(2)
    vectors = {
        name: torch.randn(4, *weight.shape, generator=generator, dtype=torch.float64)
        for name, weight in weights.items()
    }
    found = gauss_newton(scaled_predictions(model, inputs, 3), weights, vectors, chunk)
    expected = flat(vectors, axes=1) @ dense(model, inputs, weights)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in vectors.items()
    }
    assert (flat(found, axes=1) - expected).norm() < 1e-9 * expected.norm()
    assert expected.norm() > 0


def test_parts_of_a_batch_add_up(model: Model, inputs: Inputs) -> None:
    """So do ranks share a batch."""
    weights = some(model)
    vectors = {name: torch.ones(1, *weight.shape, dtype=torch.float64) for name, weight in weights.items()}

    def part(start: int, stop: int) -> Inputs:
        latent, conditions, timesteps, noise = inputs
        cut = {name: value[start:stop] for name, value in conditions.items()}
        return Inputs(latent[start:stop], cut, timesteps[start:stop], noise[start:stop])

    def of(some_inputs: Inputs) -> Tensor:
        products = flat(gauss_newton(scaled_predictions(model, some_inputs, 3), weights, vectors), axes=1)
        return torch.cat([products[0], flat(loss_gradient(batch_loss(model, some_inputs, 3), weights))])

    torch.testing.assert_close(of(part(0, 2)) + of(part(2, 3)), of(inputs), rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_loss(model: Model, inputs: Inputs) -> None:
    weights = some(model)
    for weight in (own := model.select(SOME)).values():
        weight.requires_grad_()
    expected = torch.autograd.grad(model.losses(*inputs).mean(), list(own.values()))
    model.network.requires_grad_(False)
    found = loss_gradient(batch_loss(model, inputs, 3), weights)
    for name, gradient in zip(own, expected, strict=True):
        torch.testing.assert_close(found[name], gradient)


def test_what_a_query_takes_grows_with_the_samples(network: UNet2DConditionModel, inputs: Inputs) -> None:
    model = model_of(network)
    single = Inputs(
        inputs.latent[:1], {name: value[:1] for name, value in inputs.conditions.items()}, inputs.timesteps[:1],
        inputs.noise[:1],
    )  # fmt: skip
    one, three = (
        held_by_backward(scaled_predictions(model, each, 1), some(model), network) for each in (single, inputs)
    )
    assert 2.5 * one < three <= 3 * one
    assert one > inputs.latent[0].nbytes


def test_the_way_back_is_the_derivative_of_training() -> None:
    """Of training with momentum on quadratic losses, by a gradient more at every step."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    steps, size, beta = 5, 6, 0.7
    roots = random(steps, 3, size)  # of rank 3, as few samples make it
    hessians, offsets = roots.transpose(1, 2) @ roots / 10, random(steps, size)
    scale, query, sample = random(size).abs(), random(2, size), random(3, size)

    def trained(more: Tensor) -> Tensor:
        weights, average = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for hessian, offset in zip(hessians, offsets, strict=True):
            average = beta * average + (1 - beta) * (hessian @ weights - offset + more @ sample)
            weights = weights - scale * average
        return query @ weights  # the queries' losses, [2]

    expected = torch.autograd.functional.jacobian(trained, torch.zeros(3, dtype=torch.float64))
    adjoint, momentum, direction = query.clone(), torch.zeros_like(query), torch.zeros_like(query)
    for hessian in hessians.flip(0):
        step_back(adjoint, momentum, direction, lambda rows: rows * scale, lambda rows, each=hessian: rows @ each, beta)
    torch.testing.assert_close(-(direction @ sample.T), expected)


def test_the_optimizer_of_a_checkpoint(project: Project) -> None:
    model = load(project.checkpoint)
    adam, checkpoint = adam_of(model), torch.load(project.checkpoint, weights_only=True)
    assert adam is not None
    parameters = dict(model.network.named_parameters())
    names = [name.removeprefix("denoiser.") for name in checkpoint["state_dict"]]
    names = [name for name in names if name in parameters]
    assert list(adam.second_moments) == names
    state = checkpoint["optimizer_states"][0]["state"]
    for place, name in enumerate(names):
        unbiased = state[place]["exp_avg_sq"] / (1 - 0.999**12)
        torch.testing.assert_close(adam.second_moments[name], unbiased)
    assert (adam.learning_rate, adam.epsilon) == (pytest.approx(1e-3), 1e-8)
    root = adam_diagonal(torch.tensor([4.0, 0.0]), 0.5)
    assert root.tolist() == pytest.approx([0.4, 2.0])
