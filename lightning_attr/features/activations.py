"""What a layer of the denoiser makes of an image that is noised.

Shapes: B samples, V views, F features, C x H x W a latent, L tokens or places.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.errors import UserError, expect_within, quoted
from lightning_attr.features.base import Batch, Feature
from lightning_attr.models import Model, load
from lightning_attr.noise import Draws, shared_noise


class Activations(Feature):
    """The output of a layer of a denoiser, averaged over its places; without a caption, so that the image alone counts.

    All images are noised by the same noise.

    Args:
        checkpoint: The model: a checkpoint of ours, or what else ``lightning-attr`` reads as one.
        layer: The name of the layer in the network, such as ``mid_block`` of a UNet.
        timestep: How far the image is noised: a training timestep.
        seed: Of the noise.
    """

    def __init__(self, checkpoint: InputPath, layer: str = "mid_block", timestep: int = 100, seed: int = 0) -> None:
        expect_within("feature.timestep", timestep, 0)
        self.checkpoint = checkpoint
        self.layer = layer
        self.timestep = timestep
        self.seed = seed

    @property
    def name(self) -> str:
        """Return the layer's name and the timestep."""
        return f"{self.layer}-{self.timestep}"

    @property
    def weights(self) -> str:
        """Return the digest of the model."""
        return self._model.digest

    @cached_property
    def _model(self) -> Model:
        model = load(self.checkpoint)
        if self.timestep >= model.process.levels:
            raise UserError(f"feature.timestep: found {self.timestep}, expected less than {model.process.levels}")
        if self.layer not in dict(model.network.named_modules()):
            known = [name for name, _ in model.network.named_children()]
            raise UserError(f"feature.layer: found {quoted(self.layer)}, expected a layer such as {', '.join(known)}")
        return model

    def to(self, device: torch.device, /) -> Self:
        """Move the denoiser to ``device``."""
        self._model = self._model.to(device)
        return self

    def needs_encoders(self) -> bool:
        """Return True: another encoder gives other latents."""
        return True

    @torch.no_grad()
    def rows(self, store: Store, batch: Batch) -> Tensor:
        """Return the averaged outputs, float32 [B, V, F].

        Raises:
            UserError: The model does not accept the store, or the layer's output has no rows of samples.
        """
        model = self._model
        model.accepts(store)
        if missing := sorted(model.denoiser.conditions.keys() - model.null.keys()):
            raise UserError(f"{Path(self.checkpoint).name}: found no {missing[0]} of no caption, expected it")
        weight = next(model.network.parameters())
        latent = batch["latent"].to(weight).flatten(0, 1)
        noise = shared_noise(Draws(seed=self.seed), [0], latent.shape[1:]).to(weight).expand_as(latent)
        timesteps = torch.full((len(latent),), self.timestep, device=weight.device)
        conditions = {
            name: model.null[name].to(weight.device).expand(len(latent), *model.null[name].shape)
            for name in model.denoiser.conditions
        }
        found: list[Tensor] = []
        hook = model.network.get_submodule(self.layer).register_forward_hook(
            lambda _layer, _inputs, output: found.append(_first(output))
        )
        try:
            model.predict(model.process.noised(latent, noise, timesteps)[0], model.process.times(timesteps), conditions)
        finally:
            hook.remove()
        rows = self._averaged(found, len(latent))
        return rows.reshape(*batch["latent"].shape[:2], -1)

    def _averaged(self, found: list[Tensor], count: int) -> Tensor:
        """Return the mean over places [B, F] of an output [B, F, H, W] of convolutions, or [B, L, F] of tokens."""
        shapes = [tuple(each.shape) for each in found]
        if len(found) != 1 or found[0].ndim not in (2, 3, 4) or len(found[0]) != count:
            raise UserError(f"feature.layer: found outputs {shapes} of {self.layer}, expected one with rows of samples")
        output = found[0].float()
        return output.mean((2, 3)) if output.ndim == 4 else output.mean(1) if output.ndim == 3 else output


def _first(output: Any) -> Tensor:
    """Return the tensor that a layer gives, the first of several."""
    while not isinstance(output, Tensor):
        if not isinstance(output, tuple | list) or not output:
            raise UserError(f"feature.layer: found an output of type {type(output).__name__}, expected a tensor")
        output = output[0]
    return output
