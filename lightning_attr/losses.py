"""Losses of every sample, and the scores that their change by unlearning gives (AbU, section 3).

Shapes: B samples, V views, K captions, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.models import Model
from lightning_attr.noise import Draws, batch_noise, draw_timesteps


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
        batch: ``latent`` [B, V, C, H, W] and ``text`` [B, K, L, E] in any precision, ``captions`` and ``id`` int64 [B].
        draws: Where to measure.
        views: Only the first so many views.
        captions: Only the first so many captions of each sample.
    """
    latent, text, counts = batch["latent"][:, :views], batch["text"][:, :captions], batch["captions"]
    ids = batch["id"].tolist()
    shape = latent.shape[2:]
    timesteps = draw_timesteps(draws, model.process.levels).to(latent.device)
    has_caption = torch.arange(text.shape[1], device=counts.device) < counts[:, None]
    losses = latent.new_zeros(latent.shape[0], latent.shape[1], len(draws), dtype=torch.float32)
    for draw in range(len(draws)):
        at = timesteps[draw].expand(len(ids))
        for view in range(latent.shape[1]):
            for caption in range(text.shape[1]):
                noise = batch_noise(draws, draw, shape, ids, view, caption).to(latent.device)
                x, e = latent[:, view].float(), text[:, caption].float()
                loss = model.losses(x, {"text": e}, at, noise)
                losses[:, view, draw] += torch.where(has_caption[:, caption], loss, 0)
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
