"""UNets of Stable Diffusion XL: text states, a pooled text, and the sizes that an image had.

Shapes: B samples, L tokens of E features, P numbers of a pooled text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_attr.encoders import time_ids
from lightning_attr.models.denoiser import Conditions, check_sizes
from lightning_attr.models.unet import UNet

#: Arguments that tell these UNets from those of before.
ADDED = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")


class SDXL(UNet):
    """A ``UNet2DConditionModel`` that is also given ``pooled`` [B, P] and ``time_ids`` [B, 6].

    ``time_ids`` are an image's height and width before it was resized, the upper and left edges of its crop, and its
    height and width after, in pixels. The names of weights mean what they do for other UNets.
    """

    pipelines = ("StableDiffusionXLPipeline",)

    @classmethod
    def takes(cls, config: Mapping[str, Any]) -> bool:
        """Return whether the UNet is given a pooled text and sizes."""
        return config.get("addition_embed_type") == "text_time"

    @classmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse UNets that need more than text states, pooled text and sizes, or more channels (inpainting).

        Raises:
            UserError: It is one, or its config names sizes that no network has.
        """
        check_sizes(key, config, ADDED[1:])
        super().check_config(key, {name: value for name, value in config.items() if name not in ADDED})

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Call the network."""
        added = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]}
        prediction: Tensor = self.network(
            noisy, times, encoder_hidden_states=conditions["text"], added_cond_kwargs=added
        ).sample
        return prediction

    @property
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shapes of the text states [L, E], the pooled text [P] and the sizes [6]."""
        pooled = self._config.projection_class_embeddings_input_dim - 6 * self._config.addition_time_embed_dim
        return {**super().conditions, "pooled": (int(pooled),), "time_ids": (6,)}

    def of_size(self, height: int, width: int) -> dict[str, Tensor]:
        """Return the sizes of an image that was neither resized nor cropped, [6]."""
        return {"time_ids": time_ids([(height, width)], [(0, 0)], (height, width))[0]}
