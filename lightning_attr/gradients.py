"""True per-sample gradients of the selected weights.

Hooks capture what linear layers saw (:mod:`lightning_attr.layers`), with neither ``vmap`` nor weight gradients. Where a
layer's input is a condition itself, such as the text states at cross-attention's keys and values, it is the same at
every draw: the gradients at the output are summed over draws, and one product remains. Where a weight is of another
kind, such as a norm's, all go through ``torch.func``, which is slower and needs the loss as a function of one sample.

Under autocast the network runs in low precision; what is made of the gradients afterwards does not.

Shapes: B samples, V views, K captions, D draws, L tokens of E features, P numbers of all weights,
H x W places of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_attr.layers import Call, Layer, captured, linear_weights
from lightning_attr.models import Conditions, Inputs, Model
from lightning_attr.noise import Draws
from lightning_attr.precision import outside_autocast
from lightning_attr.samples import Samples

PerSampleGradients = dict[str, Tensor]

#: What may be differentiated, by name: functions of a model and the arguments of ``Model.losses``.
OUTPUT_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {"loss": Model.losses, "squared_output": Model.squared_outputs}


@dataclass(frozen=True)
class Output:
    """What of the model is differentiated.

    Args:
        function: ``loss``, or ``squared_output``: the mean square of the prediction (D-TRAK).
        draws: Where it is measured; the gradient is the mean over them.
        normalised: Divide the gradient at each draw by its norm, so that no timestep outweighs the others.
    """

    function: Literal["loss", "squared_output"] = "loss"
    draws: Draws = field(default_factory=Draws)
    normalised: bool = False


@dataclass
class SampleGradients:
    """Per-sample gradients by weight name, the products of layers on a condition not yet formed.

    Attributes:
        conditions: The rows of each condition, of all captions, [B, K * L, in] by name.
        at_output: The gradients at the outputs of the layers on each condition, [B, K * L, out] by weight name.
        dense: The gradients by all other weights, [B, *shape] by name.
    """

    conditions: Conditions
    at_output: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    dense: PerSampleGradients = field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradient by each weight, [B, *shape], one at a time: together they may not fit memory."""
        for condition, gradients in self.at_output.items():
            for name, gradient in gradients.items():
                yield name, gradient.transpose(1, 2) @ self.conditions[condition]
        yield from self.dense.items()

    def each(self, factor: float) -> Tensor:
        """Return ``factor`` for every sample, [B]."""
        some = next(value for part in (self.dense, *self.at_output.values()) for value in part.values())
        return some.new_full([len(some)], factor)

    @outside_autocast
    def flat(self) -> Tensor:
        """Return the gradients by all weights in one row per sample, [B, P], in the order of :meth:`named`."""
        return torch.cat([gradient.flatten(1) for _, gradient in self.named()], dim=1)


def sample_gradients(
    model: Model,
    selected: Mapping[str, nn.Parameter],
    batch: Mapping[str, Tensor],
    output: Output,
    views: int | None = None,
    captions: int | None = None,
    region: Tensor | None = None,
) -> SampleGradients:
    """Return the gradient of the output of every sample: mean over draws, views, and the captions that it has.

    The arguments are those of :func:`draw_gradients`.
    """
    by_draw = draw_gradients(model, selected, batch, output, views, captions, region)
    total = next(by_draw)
    for one in by_draw:
        _add(total, one)
    return scaled(total, total.each(1 / len(output.draws)))


def draw_gradients(
    model: Model,
    selected: Mapping[str, nn.Parameter],
    batch: Mapping[str, Tensor],
    output: Output,
    views: int | None = None,
    captions: int | None = None,
    region: Tensor | None = None,
    only: int | None = None,
) -> Iterator[SampleGradients]:
    """Yield the gradient of the output of every sample at each draw: mean over views and the captions that it has.

    Args:
        model: The model.
        selected: The weights, of any layers; linear ones are fast.
        batch: As :class:`~lightning_attr.samples.Samples` takes it.
        output: What to differentiate, and where.
        views: Only the first so many views.
        captions: Only the first so many captions of each sample.
        region: How much each place of the latent counts, [H, W].
        only: The number of the one draw to take; None is all.
    """
    samples = Samples.of(model, batch, views, captions)
    counts_B1 = samples.has_caption.sum(1, keepdim=True) * len(samples.latents)
    share_BK = (samples.has_caption / counts_B1).to(samples.latents[0])
    gradients = _differentiate(model, selected, output, region)
    for draw, at_draw in enumerate(samples.at_draws(model, output.draws)):
        if only not in (None, draw):
            continue
        by_caption = [SampleGradients(rows_of(conditions)) for conditions in samples.conditions]
        for caption, _, inputs in at_draw:
            _add(by_caption[caption], scaled(gradients(inputs), share_BK[:, caption]))
        joined = _join(by_caption)
        yield scaled(joined, _inverse_norms(joined)) if output.normalised else joined


def _differentiate(
    model: Model,
    selected: Mapping[str, nn.Parameter],
    output: Output,
    region: Tensor | None,
) -> Callable[[Inputs], SampleGradients]:
    """Return the function that takes the gradients: by hooks where all weights are linear."""
    layers = linear_weights(model.network, selected)
    function = OUTPUT_FUNCTIONS[output.function]

    def values(network: nn.Module, inputs: Inputs) -> Tensor:
        return function(model.over(network), *inputs, region)

    def gradients(inputs: Inputs) -> SampleGradients:
        if layers is None:
            dense = functional_gradients(model.network, selected, values, inputs)
            return SampleGradients(rows_of(inputs.conditions), dense=dense)
        return captured_gradients(layers, lambda: values(model.network, inputs), inputs.conditions)

    return gradients


def captured_gradients(
    layers: Mapping[str, Layer], values: Callable[[], Tensor], conditions: Conditions
) -> SampleGradients:
    """Return the gradient of every sample's own value by weights and biases of linear layers, in one backward pass.

    Whether a layer's input is a condition itself is seen from the tensor that it gets, not from its name.

    Args:
        layers: The linear layer of each parameter name (``....weight`` or ``....bias``).
        values: Runs the network on a batch and returns its per-sample values, [B].
        conditions: What the network is given beside the latent, [B, ..., E] by name.

    Raises:
        UserError: A layer does not keep samples apart, see :func:`~lightning_attr.layers.captured`.
    """
    result = SampleGradients(rows_of(conditions))
    for call in captured(layers, values):
        condition = next((name for name, value in conditions.items() if value is call.input), None)
        for name, layer in layers.items():
            if layer is not call.layer:
                continue
            if condition is not None and name.endswith("weight"):
                _accumulate(result.at_output.setdefault(condition, {}), name, call.gradient_rows())
            else:
                _accumulate(result.dense, name, _contract(name, call))
    return result


def rows_of(conditions: Conditions) -> dict[str, Tensor]:
    """Return the rows of each condition, [B, L, E]; those that have one number or vector a sample have one row."""
    widths = {name: value.shape[-1] if value.ndim > 1 else 1 for name, value in conditions.items()}
    return {name: value.reshape(len(value), -1, widths[name]) for name, value in conditions.items()}


def linear_gradients(layers: Mapping[str, Layer], values: Callable[[], Tensor]) -> PerSampleGradients:
    """Return what :func:`captured_gradients` does, all products formed: [B, out, in] for a weight, [B, out] for a bias.

    A layer that was called several times gets the sum.
    """
    return captured_gradients(layers, values, {}).dense


@outside_autocast
def _contract(name: str, call: Call) -> Tensor:
    if name.endswith("bias"):
        return call.gradient_rows().sum(1)
    product = call.gradient_rows().transpose(1, 2) @ call.input_rows()
    return product.reshape(len(product), *call.layer.weight.shape)


def _accumulate(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _add(total: SampleGradients, one: SampleGradients) -> None:
    pairs = [(total.at_output.setdefault(condition, {}), parts) for condition, parts in one.at_output.items()]
    for sums, parts in [*pairs, (total.dense, one.dense)]:
        for name, value in parts.items():
            _accumulate(sums, name, value)


def scaled(gradients: SampleGradients, factor_B: Tensor) -> SampleGradients:
    """Return every sample's gradient times a factor of its own, [B]."""

    def times(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value * factor_B.reshape(-1, *[1] * (value.ndim - 1)) for name, value in parts.items()}

    at_output = {condition: times(parts) for condition, parts in gradients.at_output.items()}
    return SampleGradients(gradients.conditions, at_output, times(gradients.dense))


def _inverse_norms(gradients: SampleGradients) -> Tensor:
    """Return one over the norm of every sample's gradient, [B]; zero where it is zero."""
    norms = squared_norms(gradients).sqrt()
    return torch.where(norms > 0, 1 / norms, 0)


@outside_autocast
def squared_norms(gradients: SampleGradients) -> Tensor:
    """Return the squared norm of every sample's gradient, [B]: of ``G^T X`` it is the sum of ``(G G^T) * (X X^T)``."""
    norms = gradients.each(0.0)
    for condition, parts in gradients.at_output.items():
        g_BLO, x_BLI = torch.cat(list(parts.values()), dim=2), gradients.conditions[condition]
        products = (g_BLO @ g_BLO.transpose(1, 2)) * (x_BLI @ x_BLI.transpose(1, 2))
        norms = norms + products.flatten(1).sum(1).clamp(min=0)
    for value in gradients.dense.values():
        norms = norms + value.flatten(1).square().sum(1)
    return norms


def _join(by_caption: list[SampleGradients]) -> SampleGradients:
    """Put the tokens of all captions side by side, and sum the rest."""
    if len(by_caption) == 1:
        return by_caption[0]
    joined = SampleGradients(
        {name: torch.cat([one.conditions[name] for one in by_caption], dim=1) for name in by_caption[0].conditions}
    )
    for condition, parts in by_caption[0].at_output.items():
        joined.at_output[condition] = {
            name: torch.cat([one.at_output[condition][name] for one in by_caption], dim=1) for name in parts
        }
    for one in by_caption:
        for name, value in one.dense.items():
            _accumulate(joined.dense, name, value)
    return joined


def functional_gradients(
    network: nn.Module,
    names: Mapping[str, nn.Parameter],
    loss: Callable[[nn.Module, Inputs], Tensor],
    inputs: Inputs,
) -> PerSampleGradients:
    """Return the gradient of every sample's own loss by any weights, through ``torch.func``: [B, *shape] by name.

    Args:
        network: The denoiser.
        names: The selected parameters by name.
        loss: ``(network, inputs) -> [B]``; called with batches of one sample under ``vmap``.
        inputs: Of the loss.
    """
    chosen = {name: parameter.detach() for name, parameter in names.items()}

    def one_loss(weights: dict[str, Tensor], sample: Inputs) -> Tensor:
        latent, conditions, timestep, noise = sample
        alone = {name: value[None] for name, value in conditions.items()}
        return loss(with_weights(network, weights), Inputs(latent[None], alone, timestep[None], noise[None])).squeeze(0)

    with plain_attention():
        gradients: PerSampleGradients = torch.func.vmap(torch.func.grad(one_loss), in_dims=(None, 0))(chosen, inputs)
    return gradients


def plain_attention() -> AbstractContextManager[None]:
    """Return a context in which attention is made of plain operations.

    Fused kernels have no derivatives in forward mode, and under ``vmap`` they take the samples one by one.
    """
    return sdpa_kernel(SDPBackend.MATH)


def with_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return what looks like a network and computes with some other weights; its own others are constants."""
    own = [*network.named_parameters(), *network.named_buffers()]
    rest = {name: value.detach() for name, value in own if name not in weights}

    def call(*positional: Tensor, **named: Tensor) -> Tensor:
        return torch.func.functional_call(network, {**weights, **rest}, positional, named)  # type: ignore[no-any-return]

    return _Called(call, network)


class _Called(nn.Module):
    """Makes a function look like the network, so that one loss serves both ways."""

    def __init__(self, call: Callable[..., Tensor], network: nn.Module) -> None:
        super().__init__()
        self.call, self.config = call, getattr(network, "config", None)

    def forward(self, *inputs: Tensor, **conditions: Tensor) -> Tensor:
        return self.call(*inputs, **conditions)


def per_sample_gradients(
    network: nn.Module,
    names: Mapping[str, nn.Parameter],
    loss: Callable[[nn.Module, Inputs], Tensor],
    inputs: Inputs,
) -> PerSampleGradients:
    """Return per-sample gradients: by hooks where all selected weights are of linear layers, else by ``torch.func``."""
    layers = linear_weights(network, names)
    if layers is None:
        return functional_gradients(network, names, loss, inputs)
    return linear_gradients(layers, lambda: loss(network, inputs))
