"""True per-sample gradients of the selected weights.

A linear layer sees its input X [B, L, in] and the gradient at its output G [B, L, out]; its per-sample weight gradient
is the product ``G^T X`` [B, out, in]. Hooks capture both in one backward pass, with neither ``vmap`` nor weight
gradients. Other layers fall back to ``torch.func``, which is slower and needs the loss as a function of one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PerSampleGradients = dict[str, Tensor]


def linear_weights(network: nn.Module, names: Mapping[str, nn.Parameter]) -> dict[str, nn.Linear] | None:
    """Return the linear layer of every name, or None if one of the parameters is not of a linear layer."""
    layers = {}
    for name in names:
        layer = network.get_submodule(name.rpartition(".")[0])
        if type(layer) is not nn.Linear:
            return None
        layers[name] = layer
    return layers


@contextmanager
def captured(layers: set[nn.Linear]) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Record (layer, input, output) of every call of ``layers`` inside the context."""
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        # The output must carry a gradient even where neither the input nor the weight asks for one.
        output = output if output.requires_grad else output.detach().requires_grad_()
        calls.append((layer, inputs[0].detach(), output))
        return output

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def linear_gradients(layers: Mapping[str, nn.Linear], losses: Callable[[], Tensor]) -> PerSampleGradients:
    """Return the gradient of every sample's own loss by the weights and biases of linear layers.

    Args:
        layers: The linear layer of each parameter name (``....weight`` or ``....bias``).
        losses: Runs the network on a batch and returns its per-sample losses, [B].

    Returns:
        By name: [B, out, in] for a weight, [B, out] for a bias. A layer that was called several times gets the sum.
    """
    with captured(set(layers.values())) as calls, torch.enable_grad():
        total = losses().sum()
    gradients = torch.autograd.grad(total, [output for _, _, output in calls])
    result: PerSampleGradients = {}
    for name, layer in layers.items():
        for (called, x_BLI, _), g_BLO in zip(calls, gradients, strict=True):
            if called is layer:
                gradient = _contract(name, x_BLI, g_BLO)
                result[name] = result[name] + gradient if name in result else gradient
    return result


def _contract(name: str, x_BLI: Tensor, g_BLO: Tensor) -> Tensor:
    g_BLO = g_BLO.reshape(len(g_BLO), -1, g_BLO.shape[-1])
    if name.endswith("bias"):
        return g_BLO.sum(1)
    return g_BLO.transpose(1, 2) @ x_BLI.reshape(len(x_BLI), -1, x_BLI.shape[-1])


def functional_gradients(
    network: nn.Module,
    names: Mapping[str, nn.Parameter],
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    batch: tuple[Tensor, ...],
) -> PerSampleGradients:
    """Return the gradient of every sample's own loss by any weights, through ``torch.func``: [B, *shape] by name.

    Args:
        network: The denoiser.
        names: The selected parameters by name.
        loss: ``(network, batch) -> [B]``; called with batches of one sample under ``vmap``.
        batch: Tensors whose first axis is the batch.
    """
    chosen = {name: parameter.detach() for name, parameter in names.items()}
    rest = {
        name: value.detach()
        for name, value in [*network.named_parameters(), *network.named_buffers()]
        if name not in chosen
    }

    def one_loss(weights: dict[str, Tensor], sample: tuple[Tensor, ...]) -> Tensor:
        def call(*inputs: Tensor) -> Tensor:
            return torch.func.functional_call(network, {**weights, **rest}, inputs)  # type: ignore[no-any-return]

        return loss(_Called(call), tuple(part.unsqueeze(0) for part in sample)).squeeze(0)

    gradients: PerSampleGradients = torch.func.vmap(torch.func.grad(one_loss), in_dims=(None, 0))(chosen, batch)
    return gradients


class _Called(nn.Module):
    """Makes a function look like the network, so that one loss serves both ways."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


def per_sample_gradients(
    network: nn.Module,
    names: Mapping[str, nn.Parameter],
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor],
    batch: tuple[Tensor, ...],
) -> PerSampleGradients:
    """Return per-sample gradients: by hooks where all selected weights are of linear layers, else by ``torch.func``."""
    layers = linear_weights(network, names)
    if layers is None:
        return functional_gradients(network, names, loss, batch)
    return linear_gradients(layers, lambda: loss(network, batch))
