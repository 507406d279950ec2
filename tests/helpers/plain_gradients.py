"""Gradients of single samples through ``torch.func``, one at a time, with nothing shared: what fast ones must equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attr.gradients import Output
from lightning_attr.noise import batch_noise, draw_timesteps


def plain_gradients(
    network: nn.Module,
    scheduler: Any,
    selected: Mapping[str, nn.Parameter],
    batch: Mapping[str, Tensor],
    output: Output,
    views: int | None = None,
    captions: int | None = None,
    region: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """Return the gradients [B, *shape] by name at each draw: means over views and the captions that a sample has."""
    timesteps = draw_timesteps(output.draws, len(scheduler.alphas_cumprod))
    by_draw: list[dict[str, Tensor]] = []
    for draw in range(len(output.draws)):
        rows = []
        for row, sample in enumerate(batch["id"].tolist()):
            latents = batch["latent"][row, :views]
            texts = batch["text"][row, : int(batch["captions"][row])][:captions]
            one: list[dict[str, Tensor]] = []
            for view, latent in enumerate(latents):
                for caption, text in enumerate(texts):
                    noise = batch_noise(output.draws, draw, latent.shape, [sample], view, caption).to(latent)
                    arguments = latent[None], text[None], timesteps[draw : draw + 1], noise
                    one.append(_gradient(network, scheduler, selected, output.function, arguments, region))
            mean = {name: torch.stack([each[name] for each in one]).mean(0) for name in selected}
            rows.append(_normalised(mean) if output.normalised else mean)
        by_draw.append({name: torch.stack([each[name] for each in rows]) for name in selected})
    return by_draw


def _gradient(
    network: nn.Module,
    scheduler: Any,
    selected: Mapping[str, nn.Parameter],
    function: str,
    arguments: tuple[Tensor, ...],
    region: Tensor | None,
) -> dict[str, Tensor]:
    latent, text, timestep, noise = arguments
    level = scheduler.alphas_cumprod[timestep]  # its root is taken in float32, whatever the latent's type
    noisy = level.sqrt() * latent + (1 - level).sqrt() * noise

    def value(weights: dict[str, Tensor]) -> Tensor:
        prediction = torch.func.functional_call(network, weights, (noisy, timestep, text)).sample
        squares = (prediction - noise if function == "loss" else prediction).square().mean((0, 1))
        weight = torch.ones_like(squares) if region is None else region.to(squares)
        return (squares * weight).sum() / weight.sum()

    gradients: dict[str, Tensor] = torch.func.grad(value)({name: w.detach() for name, w in selected.items()})
    return gradients


def _normalised(gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    norm = torch.cat([part.flatten() for part in gradient.values()]).norm()
    return {name: part / norm for name, part in gradient.items()}


def mean_over_draws(by_draw: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean gradient by name."""
    return {name: torch.stack([one[name] for one in by_draw]).mean(0) for name in by_draw[0]}


def rows(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return the gradients by all weights side by side, [B, P]."""
    return torch.cat([part.flatten(1) for part in gradients.values()], dim=1)
