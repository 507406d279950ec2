"""Linear layers: what each of them got and passed back, captured by hooks in one backward pass.

A linear layer sees its input X [B, L, in] and the gradient at its output G [B, L, out]; its per-sample weight gradient
is the product ``G^T X`` [B, out, in]. So does a convolution, X being the patches under its kernel.

Shapes: B samples, L tokens or places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_attr.errors import UserError

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


#: Layers that were found to keep samples apart, and whether on one sample or on more; a network is looked at once.
_checked: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@torch.enable_grad()
def captured(layers: Mapping[str, Layer], values: Callable[[], Tensor]) -> list[Call]:
    """Run ``values`` and its backward pass, and return every call of ``layers`` with the gradient at its output.

    Args:
        layers: By the names of their weights.
        values: Returns one value for each sample, [B].

    Raises:
        UserError: The rows of a layer's input are not the samples', or hooks do not see all that is done by its weight.
    """
    known = min((_checked.get(layer, 0) for layer in layers.values()), default=2)
    if known == 2:
        return _calls(*_recorded(layers, values))
    with _asked_for({id(layer.weight): layer.weight for layer in layers.values()}.values()):
        recorded, result = _recorded(layers, values)
        calls = _calls(recorded, result, retain_graph=True)
        if known < min(2, len(result)):  # of one sample alone, rows cannot be mixed up
            _check_rows(layers, recorded, result)
            _check_sums(layers, result, calls)
    _checked.update(dict.fromkeys(layers.values(), min(2, len(result))))
    return calls


def _calls(recorded: list[tuple[Layer, Tensor, Tensor]], result: Tensor, retain_graph: bool = False) -> list[Call]:
    """Return the calls with the gradients at their outputs; zero at one that the values do not depend on."""
    outputs = [output for _, _, output in recorded]
    gradients = torch.autograd.grad(result.sum(), outputs, materialize_grads=True, retain_graph=retain_graph)
    return [
        Call(layer, x, gradient.to(layer.weight.dtype))
        for (layer, x, _), gradient in zip(recorded, gradients, strict=True)
    ]


@contextmanager
def _asked_for(weights: Iterable[Tensor]) -> Iterator[None]:
    """Let a graph be recorded by which gradients of frozen weights can be taken."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_()
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _recorded(
    layers: Mapping[str, Layer], values: Callable[[], Tensor]
) -> tuple[list[tuple[Layer, Tensor, Tensor]], Tensor]:
    """Return layer, input and output of every call, and the values [B]."""
    calls: list[tuple[Layer, Tensor, Tensor]] = []
    versions: list[int] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, Layer)
        # The output must carry a gradient even where neither the input nor the weight asks for one.
        output = output if output.requires_grad else output.detach().requires_grad_()
        calls.append((layer, inputs[0], output))
        versions.append(_version(inputs[0]))
        return output

    with _hooked({*layers.values()}, record):
        result = values()
    for (layer, x, _), version in zip(calls, versions, strict=True):
        if x.ndim < (4 if isinstance(layer, nn.Conv2d) else 2) or len(x) != len(result):
            shape = " x ".join(map(str, x.shape))
            raise _refusal(layers, layer, f"an input of {shape}", f"{len(result)} samples as its first axis")
        if _version(x) != version:
            raise _refusal(layers, layer, "an input that is changed in place later", "one that stays")
    return calls, result


def _check_rows(layers: Mapping[str, Layer], recorded: list[tuple[Layer, Tensor, Tensor]], result: Tensor) -> None:
    """Check that the first sample's value depends on the first row of each output alone.

    Raises:
        UserError: It depends on others as well.
    """
    outputs = [output for _, _, output in recorded]
    first = torch.autograd.grad(result[0], outputs, retain_graph=True, materialize_grads=True)
    for (layer, _, _), gradient in zip(recorded, first, strict=True):
        if bool(gradient[1:].any()):
            raise _refusal(layers, layer, "rows that other samples depend on", "a first axis of samples")


def _check_sums(layers: Mapping[str, Layer], result: Tensor, calls: list[Call]) -> None:
    """Check that the gradients of a batch by weights, as autograd has them, are what its calls add up to.

    Raises:
        UserError: They are not.
    """
    each = dict.fromkeys(layers.values())
    by_weight = torch.autograd.grad(result.sum(), [layer.weight for layer in each], materialize_grads=True)
    tolerance = 0.05 if torch.is_autocast_enabled(result.device.type) else 1e-3
    for layer, expected in zip(each, by_weight, strict=True):
        total = torch.zeros_like(expected).flatten(1)
        for call in calls:
            if call.layer is layer:
                total += call.gradient_rows().flatten(0, 1).T @ call.input_rows().flatten(0, 1)
        if not bool((total - expected.flatten(1)).norm() <= tolerance * expected.norm()):
            found = "a gradient that its layer alone does not give"
            raise _refusal(layers, layer, found, "no other use, and an output that stays")


def _version(x: Tensor) -> int:
    """Return how often a tensor was changed in place; those of inference mode do not count it."""
    return 0 if x.is_inference() else x._version


def _refusal(layers: Mapping[str, Layer], layer: Layer, found: str, expected: str) -> UserError:
    name = next(name for name, each in layers.items() if each is layer)
    return UserError(f"weights: {name}: found {found}, expected {expected}; choose weights of other layers")


@contextmanager
def _hooked(layers: set[Layer], hook: Callable[..., Tensor]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
