"""Hooks on layers: right gradients, or a refusal that names the layer, whatever the network does with its samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_attr.errors import UserError
from lightning_attr.gradients import linear_gradients
from lightning_attr.layers import linear_weights

SAMPLES, TOKENS, WIDTH = 3, 4, 5


class Network(nn.Module):
    """Gives its layers to a function of the samples [B, T, D]."""

    def __init__(self, call: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.call = call
        self.layer, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.place = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.conv = nn.Conv2d(TOKENS, TOKENS, 1)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x).tanh().reshape(len(x), -1).square().mean(1)


def tied(network: Network, x: Tensor) -> Tensor:
    return nn.functional.linear(network.layer(x).tanh(), network.layer.weight)


def changed_in_place(network: Network, x: Tensor) -> Tensor:
    x = x + 0
    y = network.layer(x)
    return y + x.mul_(2)


def batch_norm(network: Network, x: Tensor) -> Tensor:
    y = network.layer(x)
    return network.layer((y - y.mean(0)) / (y.std(0) + 1))


RIGHT: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "plain": lambda network, x: network.layer(x),
    "called twice": lambda network, x: network.layer(network.layer(x).tanh()),
    "of one token": lambda network, x: network.layer(x.mean(1)),
    "of more axes": lambda network, x: network.layer(x[:, :, None].expand(-1, -1, 2, -1)).mean(2),
    "not used": lambda network, x: network.layer(x) * 0 + x,
    "on the samples turned over": lambda network, x: network.layer(x.flip(1)).transpose(1, 2),
}

REFUSED: dict[str, tuple[Callable[[Network, Tensor], Tensor], str]] = {
    "tokens first": (lambda network, x: network.layer(x.transpose(0, 1)).transpose(0, 1), "an input of 4 x 3 x 5"),
    "as many tokens as samples, first": (
        lambda network, x: network.layer(x[:, :SAMPLES].transpose(0, 1)).transpose(0, 1),
        "rows that other samples depend on",
    ),
    "flattened": (lambda network, x: network.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]), "an input of 12 x 5"),
    "one for all": (lambda network, x: x + network.layer(network.place), "an input of 1 x 4 x 5"),
    "twice the samples": (lambda network, x: sum(network.layer(torch.cat([x, 2 * x])).chunk(2)), "an input of 6 x 4"),
    "a few samples": (lambda network, x: x + network.layer(x[:1]), "an input of 1 x 4 x 5"),
    "the samples in another order": (lambda network, x: network.layer(x.flip(0)).flip(0), "rows that other samples"),
    "samples that see each other": (batch_norm, "rows that other samples depend on"),
    "a weight used elsewhere": (tied, "a gradient that its layer alone does not give"),
    "an output changed in place": (
        lambda network, x: network.layer(network.layer(x).tanh()).mul_(2),
        "a gradient that its layer alone does not give",
    ),
    "an input changed in place": (changed_in_place, "an input that is changed in place later"),
    "a picture without a batch": (lambda network, x: x + network.conv(x[0][..., None]).sum(),
                                  "an input of"),
}  # fmt: skip


def gradients(call: Callable[[Network, Tensor], Tensor], samples: int = SAMPLES) -> tuple[dict[str, Tensor], Network]:
    network = Network(call)
    weights = {name: value for name, value in network.named_parameters() if name.endswith("layer.weight")}
    if call is REFUSED["a picture without a batch"][0]:
        weights = {"conv.weight": network.conv.weight}
    layers = linear_weights(network, weights)
    assert layers is not None
    x = torch.randn(samples, TOKENS, WIDTH)
    try:
        return linear_gradients(layers, lambda: network(x)), network
    finally:
        assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("name", RIGHT)
def test_gradients_equal_one_backward_pass_a_sample(name: str) -> None:
    network = Network(RIGHT[name])
    layers = linear_weights(network, {"layer.weight": network.layer.weight, "layer.bias": network.layer.bias})
    assert layers is not None
    x = torch.randn(SAMPLES, TOKENS, WIDTH)
    for _ in range(2):  # the first time with a check of the network
        found = linear_gradients(layers, lambda: network(x))
    network.layer.requires_grad_()
    for row in range(SAMPLES):
        expected = torch.autograd.grad(
            network(x)[row] + 0 * network.layer.weight.sum(), [network.layer.weight], materialize_grads=True
        )
        each = found["layer.weight"][row] if found else torch.zeros(WIDTH, WIDTH)
        torch.testing.assert_close(each, expected[0])


@pytest.mark.parametrize("name", REFUSED)
def test_what_hooks_cannot_tell_apart_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(UserError, match=rf"weights: (layer|conv)\.weight: found {message}"):
        gradients(call)


def test_a_batch_of_one_sample_does_not_pass_a_larger_one() -> None:
    """As many tokens as samples: with one of each there is nothing to mix up."""
    network = Network(lambda network, x: network.layer(x.transpose(0, 1)).transpose(0, 1))
    layers = linear_weights(network, {"layer.weight": network.layer.weight})
    assert layers is not None
    linear_gradients(layers, lambda: network(torch.ones(1, 1, WIDTH)))
    with pytest.raises(UserError, match="rows that other samples depend on"):
        linear_gradients(layers, lambda: network(torch.randn(3, 3, WIDTH)))
