"""Transformers of FLUX that are told a scale of guidance, as its dev model is.

Shapes: B samples, C x H x W a latent, L tokens of E features, P numbers of a pooled text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from lightning_attr.errors import UserError
from lightning_attr.models.denoiser import Conditions, Denoiser, check_sizes
from lightning_attr.models.objective import Objective
from lightning_attr.models.process import FlowMatching
from lightning_attr.models.sd3 import MATRICES, TEXT_KEYS, TEXT_LAYERS, shifted

#: The side of a patch of the latent that is one token, and of a latent of the size that the pipeline has for usual.
PATCH, SIDE = 2, 128


class Flux(Denoiser):
    """A ``FluxTransformer2DModel``, given ``text`` [B, L, E], ``pooled`` [B, P] and ``guidance`` [B].

    The last is no part of a sample: it is what the training was told, or what an image is sampled with. The names of
    weights mean what they do for Stable Diffusion 3; the text has layers of its own in double blocks alone.
    """

    class_name = "FluxTransformer2DModel"
    patterns = {  # noqa: RUF012 (declared a class variable by the base)
        "cross_kv": TEXT_KEYS,
        "cross_attention": TEXT_LAYERS,
        "attention": r"\battn\.(?!norm)",
        "matrices": MATRICES,
        "all": r"",
    }
    pipelines = ("FluxPipeline",)
    process = FlowMatching
    usual = Objective(weighting="none", timesteps="uniform", guidance=3.5)
    embeds_guidance = True

    @classmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse transformers that are told no guidance, or take images beside the latent.

        Raises:
            UserError: It is one, or its config names sizes that no network has.
        """
        if config.get("guidance_embeds") is not True:
            raise UserError(
                f"{key}: found no guidance_embeds, expected true: schnell and its like were distilled, and no loss of "
                "their training is known"
            )
        names = ("in_channels", "num_attention_heads", "attention_head_dim")
        check_sizes(key, config, (*names, "joint_attention_dim", "pooled_projection_dim"))
        check_sizes(key, config, ["num_layers", "num_single_layers"], 1000)
        channels, out = config.get("in_channels", 64), config.get("out_channels")
        if channels % PATCH**2 or out not in (None, channels) or config.get("patch_size", 1) != 1:
            found = f"{channels} channels in, {out} out, patches of {config.get('patch_size', 1)}"
            raise UserError(f"{key}: found {found}, expected as many of both, a multiple of 4, and patches of 1")

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Call the network with the latent packed, and unpack what it predicts."""
        height, width = noisy.shape[2] // PATCH, noisy.shape[3] // PATCH
        text = conditions["text"]
        prediction: Tensor = self.network(
            hidden_states=packed(noisy),
            timestep=times.to(noisy.dtype) / 1000,
            guidance=conditions["guidance"],
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=positions(height, width).to(noisy),
        ).sample
        return unpacked(prediction, height, width)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return C, H, W of the latents that the pipeline makes where nothing else is said."""
        return int(self._config.in_channels) // PATCH**2, SIDE, SIDE

    @property
    def multiple(self) -> int:
        """Return the side of a patch."""
        return PATCH

    @property
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shapes of the text states [L, E], of any number of tokens, and of the pooled text [P]."""
        return {
            "text": (None, int(self._config.joint_attention_dim)),
            "pooled": (int(self._config.pooled_projection_dim),),
        }

    def steps(self, count: int, size: Sequence[int], scheduler: Mapping[str, Any]) -> dict[str, Any]:
        """Return shares of noise from 1 down to one step's, and how they are shifted where that depends on the size."""
        tokens = (size[0] // PATCH) * (size[1] // PATCH)
        return {"sigmas": np.linspace(1.0, 1 / count, count), **shifted(tokens, scheduler)}


def packed(latent: Tensor) -> Tensor:
    """Return a latent [B, C, H, W] as tokens of its patches, [B, H/2 * W/2, 4 C].

    They lie in memory as the pipeline's do: on some processors the bits of a product depend on that.
    """
    return pixel_unshuffle(latent, PATCH).flatten(2).transpose(1, 2).contiguous()


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [B, height * width, 4 C] as the latent whose patches they are, [B, C, 2 height, 2 width]."""
    return pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height, width), PATCH)


def positions(height: int, width: int) -> Tensor:
    """Return a zero, the row and the column of each of height x width tokens, [height * width, 3]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()
