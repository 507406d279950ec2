"""Per-sample gradients against torch.func, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from plain_gradients import mean_over_draws, plain_gradients, rows
from small_network import SCHEDULER, model_of, small_batch, small_network
from torch import Tensor, nn

from lightning_attr.gradients import (
    Output,
    SampleGradients,
    draw_gradients,
    functional_gradients,
    linear_gradients,
    per_sample_gradients,
    sample_gradients,
    scaled,
    squared_norms,
)
from lightning_attr.layers import linear_weights
from lightning_attr.models import Inputs
from lightning_attr.models.unet import UNet
from lightning_attr.noise import Draws

NOT_OF_NORMS = "^(?!.*norm).*weight$"


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    return small_network()


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(1)
    latent, noise = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(3, 5, 12, generator=generator, dtype=torch.float64)
    return Inputs(latent, {"text": text}, torch.tensor([10, 400, 900]), noise)


def loss(network: nn.Module, inputs: Inputs) -> Tensor:
    return model_of(network).losses(*inputs)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-10) -> None:
    """Compare by name, each gradient relative to its norm."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= relative * gradient.norm(), name


@pytest.mark.parametrize("weights", ["cross_kv", "cross_attention", "attention", NOT_OF_NORMS])
def test_hooks_equal_torch_func(network: UNet2DConditionModel, inputs: Inputs, weights: str) -> None:
    selected = UNet(network).select(weights)
    linear = {name: weight for name, weight in selected.items() if linear_weights(network, {name: weight})}
    layers = linear_weights(network, linear)
    assert layers is not None
    found = linear_gradients(layers, lambda: loss(network, inputs))
    assert_equal(found, functional_gradients(network, linear, loss, inputs))


def test_any_weights_equal_one_backward_per_sample(network: UNet2DConditionModel, inputs: Inputs) -> None:
    selected = UNet(network).select(r"conv_in|norm_out|attn2\.to_k")
    found = per_sample_gradients(network, selected, loss, inputs)
    for weight in selected.values():
        weight.requires_grad_()
    for index in range(len(inputs.latent)):
        latent, timesteps, noise = (part[index : index + 1] for part in (inputs.latent, inputs.timesteps, inputs.noise))
        one = Inputs(latent, {"text": inputs.conditions["text"][index : index + 1]}, timesteps, noise)
        expected = torch.autograd.grad(loss(network, one).sum(), list(selected.values()))
        for name, gradient in zip(selected, expected, strict=True):
            torch.testing.assert_close(found[name][index], gradient, rtol=1e-10, atol=1e-14)
    network.requires_grad_(False)


TWO = Draws(2)
OUTPUTS: dict[str, tuple[Output, dict[str, Any]]] = {
    "loss": (Output(draws=TWO), {}),
    "squared output": (Output("squared_output", TWO), {}),
    "own draws": (Output(draws=Draws(2, mode="own")), {}),
    "two noises": (Output(draws=Draws(1, 2)), {}),
    "normalised": (Output(draws=TWO, normalised=True), {}),
    "a window": (Output(draws=Draws(2, window=(300, 500))), {}),
    "a region": (Output(draws=TWO), {"region": torch.eye(8)}),
    "first view and caption": (Output(draws=TWO), {"views": 1, "captions": 1}),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_samples_equal_plain_loops(network: UNet2DConditionModel, case: str) -> None:
    output, settings = OUTPUTS[case]
    batch, selected = small_batch([4, 5, 9]), UNet(network).select("cross_kv")
    expected = plain_gradients(network, SCHEDULER, selected, batch, output, **settings)
    by_draw = list(draw_gradients(model_of(network), selected, batch, output, **settings))
    for one, plain in zip(by_draw, expected, strict=True):
        assert not one.dense  # all products are still to be formed
        assert_equal(dict(one.named()), plain)
    mean = sample_gradients(model_of(network), selected, batch, output, **settings)
    assert_equal(dict(mean.named()), mean_over_draws(expected))


@pytest.mark.parametrize("weights", ["attention", NOT_OF_NORMS, "all"])
@pytest.mark.parametrize("normalised", [False, True])
def test_other_weights_equal_plain_loops(network: UNet2DConditionModel, weights: str, normalised: bool) -> None:
    output, selected = Output(draws=TWO, normalised=normalised), UNet(network).select(weights)
    batch = small_batch([4, 5])
    found = sample_gradients(model_of(network), selected, batch, output)
    expected = mean_over_draws(plain_gradients(network, SCHEDULER, selected, batch, output))
    # A bias before a normalisation has the gradient zero, but for rounding.
    names = {name for name, gradient in expected.items() if gradient.norm() > 1e-12}
    assert len(names) > len(expected) / 2
    assert_equal(
        {name: gradient for name, gradient in found.named() if name in names},
        {name: gradient for name, gradient in expected.items() if name in names},
        1e-9 if weights == "all" else 1e-10,
    )


def test_single_precision(network: UNet2DConditionModel) -> None:
    batch, output = small_batch([4, 5, 9]), Output(draws=TWO)
    expected = mean_over_draws(
        plain_gradients(network, SCHEDULER, UNet(network).select("cross_attention"), batch, output)
    )
    single = small_network().float()
    selected = UNet(single).select("cross_attention")
    found = sample_gradients(model_of(single), selected, batch, output)
    assert_equal({name: each.double() for name, each in found.named()}, expected, 1e-5)


@pytest.mark.parametrize("weights", ["cross_attention", "matrices"])
def test_low_precision_ends_with_the_network(network: UNet2DConditionModel, weights: str) -> None:
    """Scores and norms that are made of the gradients have more than the eight bits of bfloat16."""
    single = small_network().float()
    selected, batch = UNet(single).select(weights), small_batch([4, 5, 9])
    full = sample_gradients(model_of(single), selected, batch, Output(draws=TWO))
    with torch.autocast("cpu", torch.bfloat16):
        low = sample_gradients(model_of(single), selected, batch, Output(draws=TWO))
        found, norms = low.flat(), squared_norms(low)
    assert found.dtype == norms.dtype == torch.float32
    torch.testing.assert_close(norms, found.square().sum(1), rtol=1e-4, atol=0)
    assert (found - full.flat()).norm() < 0.05 * full.flat().norm()


def test_an_input_that_is_not_the_text_itself_is_seen(network: UNet2DConditionModel) -> None:
    """As in transformers that change the text states from layer to layer; here, those of some keys are scaled."""
    selected = UNet(network).select("cross_kv")
    changed = [name for name in selected if name.endswith("to_k.weight")][:2]
    batch, output = small_batch([4, 5]), Output(draws=TWO)
    handles = [
        network.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
            lambda _, inputs, factor=factor: (inputs[0] * factor,)
        )
        for factor, name in enumerate(changed, start=2)
    ]
    try:
        found = sample_gradients(model_of(network), selected, batch, output)
        expected = mean_over_draws(plain_gradients(network, SCHEDULER, selected, batch, output))
    finally:
        for handle in handles:
            handle.remove()
    assert set(found.dense) == set(changed)
    assert set(found.at_output["text"]) == set(selected) - set(changed)
    assert_equal(dict(found.named()), {name: expected[name] for name, _ in found.named()})


def test_a_copy_of_the_text_is_not_the_text(network: UNet2DConditionModel) -> None:
    selected, batch = UNet(network).select("cross_kv"), small_batch([4, 5])

    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.config = network, network.config

        def forward(self, latent: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
            return network(latent, timesteps, encoder_hidden_states.clone())

        def get_submodule(self, target: str) -> nn.Module:
            return network.get_submodule(target)

    found = sample_gradients(model_of(Copied()), selected, batch, Output(draws=TWO))
    expected = sample_gradients(model_of(network), selected, batch, Output(draws=TWO))
    assert not found.at_output
    assert_equal(dict(found.named()), dict(expected.named()))


def test_a_caption_that_a_sample_lacks_changes_nothing(network: UNet2DConditionModel) -> None:
    selected, batch = UNet(network).select("cross_kv"), small_batch([4, 5])
    before = sample_gradients(model_of(network), selected, batch, Output(draws=TWO)).flat()
    batch["text"][1, 1] = 100
    after = sample_gradients(model_of(network), selected, batch, Output(draws=TWO)).flat()
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-14)


def test_a_layer_that_plays_no_part_has_the_gradient_zero(inputs: Inputs) -> None:
    used, unused, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(4, 5, 3)

    def values() -> Tensor:
        unused(x)
        return used(x).square().flatten(1).sum(1)

    found = linear_gradients({"used.weight": used, "unused.weight": unused}, values)
    assert not found["unused.weight"].any()
    assert found["used.weight"].any(dim=(1, 2)).all()


@pytest.mark.parametrize("weights", ["cross_kv", "cross_attention"])
def test_norms_and_scaling_without_forming_products(network: UNet2DConditionModel, weights: str) -> None:
    selected, batch = UNet(network).select(weights), small_batch([4, 5, 9])
    found = sample_gradients(model_of(network), selected, batch, Output(draws=TWO))
    flat = found.flat()
    assert torch.equal(flat, rows(dict(found.named())))
    torch.testing.assert_close(squared_norms(found), flat.square().sum(1), rtol=1e-12, atol=0)
    factors = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(scaled(found, factors).flat(), flat * factors[:, None])
    assert isinstance(found, SampleGradients)


def test_products_are_of_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(2, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_gradients({"weight": layer}, lambda: layer(x).float().square().sum((1, 2)))["weight"]
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
