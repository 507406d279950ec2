"""How many bytes a gradient method holds of each query and of each sample, from shapes alone.

What the network itself holds for its backward pass is not counted: that depends on the device and its kernels.

Shapes: K captions, L tokens, P numbers of all weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_attr.layers import linear_weights
from lightning_attr.methods.gradient_method import GradientMethod
from lightning_attr.methods.gradient_similarity import GradientSimilarity
from lightning_attr.methods.trak import Trak
from lightning_attr.models import Model


class Held(NamedTuple):
    """Bytes in the precision of the weights.

    Attributes:
        query: Of a query while samples are measured, in every pass.
        sample: Of a sample of the batch that is measured: its gradient at one draw.
    """

    query: int
    sample: int


def held(method: GradientMethod, model: Model, tokens: int, captions: int = 1) -> Held:
    """Return what a method holds; the model may be on the device ``meta``, and is called once.

    Args:
        method: Influence, similarity of gradients, or one of TRAK's family.
        model: The model, of any precision.
        tokens: L, where the network takes any number.
        captions: K, of each sample.

    Raises:
        UserError: The method's weights select nothing.
    """
    selected = model.select(method.weights)
    sizes = {name: weight.numel() for name, weight in selected.items()}
    rows = _rows_on_conditions(model, selected, tokens)
    formed = max((sizes[name] for name in rows), default=0)  # one at a time
    of_sample = sum(captions * rows[name] if name in rows else size for name, size in sizes.items()) + formed
    draws = len(method.output.draws) if method.per_draw else 1
    of_query = sum(sizes.values())
    if isinstance(method, Trak):
        of_query = draws * (method.projection or of_query)
    elif isinstance(method, GradientSimilarity):
        of_query *= draws
    itemsize = next(iter(selected.values())).element_size()
    return Held(of_query * itemsize, of_sample * itemsize)


@torch.no_grad()
def _rows_on_conditions(model: Model, selected: dict[str, nn.Parameter], tokens: int) -> dict[str, int]:
    """Return how many numbers stand for the gradient by each weight of a layer on a condition: L * out of a caption."""
    device, dtype = next((weight.device, weight.dtype) for weight in selected.values())
    sizes = {name: [size or tokens for size in shape] for name, shape in model.denoiser.conditions.items()}
    conditions = {name: torch.empty(1, *shape, device=device, dtype=dtype) for name, shape in sizes.items()}
    rows: dict[str, int] = {}

    def record(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if name.endswith("weight") and any(inputs[0] is value for value in conditions.values()):
            rows[name] = output.numel()

    layers = linear_weights(model.network, selected) or {}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: record(name, inputs, output))
        for name, layer in layers.items()
    ]
    try:
        latent = torch.empty(1, *model.latent_shape, device=device, dtype=dtype)
        model.predict(latent, torch.zeros(1, dtype=torch.int64, device=device), conditions)
    finally:
        for hook in hooks:
            hook.remove()
    return rows
