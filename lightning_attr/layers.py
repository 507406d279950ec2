"""Linear layers: what each of them got and passed back, captured by hooks in one backward pass.

A linear layer sees its input X [B, L, in] and the gradient at its output G [B, L, out]; its per-sample weight gradient
is the product ``G^T X`` [B, out, in]. So does a convolution, X being the patches under its kernel.

Shapes: B samples, L tokens or places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


class Call(NamedTuple):
    """One call of a layer: its input [B, ..., in] and, after the backward pass, the gradient at its output.

    The input is as the layer got it; under autocast it may be of low precision. The gradient is of the weight's.
    """

    layer: Layer
    input: Tensor
    gradient: Tensor

    def input_rows(self) -> Tensor:
        """Return X [B, L, in]: of a convolution the patches under its kernel, one for each place of its output."""
        x = self.input.detach().to(self.layer.weight.dtype)
        if isinstance(self.layer, nn.Conv2d):
            return _patches(self.layer, x).transpose(1, 2)
        return x.reshape(len(x), -1, x.shape[-1])

    def gradient_rows(self) -> Tensor:
        """Return G [B, L, out]; ``G^T X`` is the gradient by the weight, flattened."""
        if isinstance(self.layer, nn.Conv2d):
            return self.gradient.flatten(2).transpose(1, 2)
        return self.gradient.reshape(len(self.gradient), -1, self.gradient.shape[-1])


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert not isinstance(layer.padding, str)
    return nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


def linear_weights(network: nn.Module, names: Mapping[str, nn.Parameter]) -> dict[str, Layer] | None:
    """Return the layer of every name, or None if one of the parameters is not of a linear map: of a norm, say."""
    layers: dict[str, Layer] = {}
    for name in names:
        layer = network.get_submodule(name.rpartition(".")[0])
        if not is_linear(layer):
            return None
        assert isinstance(layer, Layer)
        layers[name] = layer
    return layers


def is_linear(layer: nn.Module) -> bool:
    """Return whether a layer's weight gradient is a product of its input and the gradient at its output."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def captured(layers: set[Layer], values: Callable[[], Tensor]) -> list[Call]:
    """Run ``values`` and its backward pass, and return every call of ``layers`` with the gradient at its output."""
    calls: list[tuple[Layer, Tensor, Tensor]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, Layer)
        # The output must carry a gradient even where neither the input nor the weight asks for one.
        output = output if output.requires_grad else output.detach().requires_grad_()
        calls.append((layer, inputs[0], output))
        return output

    with _hooked(layers, record), torch.enable_grad():
        total = values().sum()
    # An output that the values do not depend on has the gradient zero.
    gradients = torch.autograd.grad(total, [output for _, _, output in calls], materialize_grads=True)
    return [
        Call(layer, x, gradient.to(layer.weight.dtype))
        for (layer, x, _), gradient in zip(calls, gradients, strict=True)
    ]


@contextmanager
def _hooked(layers: set[Layer], hook: Callable[..., Tensor]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
