"""Samples as a model takes them: as training shows them, or whole ones, one view, one caption and one draw at a time.

Shapes: B samples, V views, K captions, C x H x W a latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attr.models import Inputs, Model
from lightning_attr.noise import Draws, batch_noise, draw_timesteps, training_noise


def as_trained(
    model: Model, batch: Mapping[str, Tensor], seed: int, epoch: int, caption_dropout: float = 0.0
) -> Inputs:
    """Return a batch as training shows it: at random timesteps and noises, some captions dropped.

    Args:
        model: The model.
        batch: One view and caption of each sample, as ``LatentDataModule`` gives them to ``fit``.
        seed: Of the timesteps, the noises and the dropped captions, with the epoch and the showing.
        epoch: Its number.
        caption_dropout: Share of captions that are replaced by the null conditions.
    """
    latent, levels = batch["latent"], model.process.levels
    added = training_noise(seed, epoch, batch["showing"].tolist(), latent.shape[1:], levels, model.sampling)
    noise, timesteps, uniform = (part.to(latent.device) for part in added)
    conditions = model.conditions_of(batch)
    if caption_dropout > 0:
        conditions = model.with_null(conditions, uniform < caption_dropout)
    return Inputs(latent, conditions, timesteps, noise)


@dataclass(frozen=True)
class Samples:
    """A batch of whole samples.

    Attributes:
        latents: Of each view, [B, C, H, W].
        conditions: Of each caption by name, [B, ...] each. The tensors stay the same ones over views and draws.
        has_caption: Bool [B, K].
        ids: Of the samples, which noises are keyed by.
    """

    latents: Sequence[Tensor]
    conditions: Sequence[Mapping[str, Tensor]]
    has_caption: Tensor
    ids: Sequence[int]

    @classmethod
    def of(cls, model: Model, batch: Mapping[str, Tensor], views: int | None, captions: int | None) -> Samples:
        """Take the samples of a batch in the precision of the model's weights.

        Args:
            model: The model.
            batch: ``latent`` [B, V, C, H, W] and the model's conditions [B, K or 1, ...] in any precision, ``captions``
                and ``id`` int64 [B].
            views: Only the first so many views; None is all.
            captions: Only the first so many captions; None is all.
        """
        dtype = next(model.network.parameters()).dtype
        rows = model.conditions_of({name: batch[name][:, :captions] for name in model.denoiser.conditions})
        count = max((value.shape[1] for value in rows.values()), default=1)
        conditions = [
            {name: value[:, min(caption, value.shape[1] - 1)].contiguous() for name, value in rows.items()}
            for caption in range(count)
        ]
        counts = batch["captions"]
        has_caption = torch.arange(count, device=counts.device) < counts[:, None]
        latents = [view.to(dtype).contiguous() for view in batch["latent"][:, :views].unbind(1)]
        return cls(latents, conditions, has_caption, batch["id"].tolist())

    def at_draws(self, model: Model, draws: Draws) -> Iterator[Iterator[tuple[int, int, Inputs]]]:
        """Yield for every draw an iterator over captions and views: their numbers, and what the model is given."""
        for draw, timestep in enumerate(draw_timesteps(draws, model.process.levels).to(self.latents[0].device)):
            yield self._at(draws, draw, timestep.expand(len(self.ids)))

    def _at(self, draws: Draws, draw: int, timesteps: Tensor) -> Iterator[tuple[int, int, Inputs]]:
        for caption, conditions in enumerate(self.conditions):
            for view, latent in enumerate(self.latents):
                noise = batch_noise(draws, draw, latent.shape[1:], self.ids, view, caption).to(latent)
                yield caption, view, Inputs(latent, conditions, timesteps, noise)
