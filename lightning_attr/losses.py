"""Losses of every sample, and the scores that their change by unlearning gives (AbU, section 3).

Shapes: B samples, N samples of the whole store, V views, K captions, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.models import Model
from lightning_attr.noise import Draws
from lightning_attr.samples import Samples


@torch.no_grad()
def sample_losses(
    model: Model,
    batch: Mapping[str, Tensor],
    draws: Draws,
    views: int | None = None,
    captions: int | None = None,
) -> Tensor:
    """Return the losses of a batch of whole samples, averaged over captions: float32 [B, V, D].

    Args:
        model: The model.
        batch: As :class:`~lightning_attr.samples.Samples` takes it.
        draws: Where to measure.
        views: Only the first so many views.
        captions: Only the first so many captions of each sample.
    """
    samples = Samples.of(model, batch, views, captions)
    latents, has_caption = samples.latents, samples.has_caption
    losses = latents[0].new_zeros(len(samples.ids), len(latents), len(draws), dtype=torch.float32)
    for draw, at_draw in enumerate(samples.at_draws(model, draws)):
        for caption, view, inputs in at_draw:
            losses[:, view, draw] += torch.where(has_caption[:, caption], model.losses(*inputs), 0)
    return losses / has_caption.sum(1)[:, None, None]


def delta_scores(before: Tensor, after: Tensor, over_views: Literal["max", "mean"] = "max") -> Tensor:
    """Return the loss delta of every sample, [N]: mean over draws, then max or mean over views.

    Args:
        before: Losses under the trained model, [N, V, D].
        after: Losses after unlearning on the same draws, [N, V, D].
        over_views: How views are combined; the paper takes the maximum and finds the mean similar.

    Raises:
        UserError: The losses are not finite, or not of the same samples and draws.
    """
    if before.shape != after.shape:
        raise UserError(
            f"losses: found {tuple(after.shape)} after unlearning, expected {tuple(before.shape)} as before"
        )
    deltas = (after.double() - before.double()).mean(2)
    if not torch.isfinite(deltas).all():
        raise UserError("losses: not finite after unlearning; lower model.step_size or raise model.damping")
    reduced = deltas.amax(1) if over_views == "max" else deltas.mean(1)
    return reduced.float()
