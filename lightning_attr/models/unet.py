"""UNets of Stable Diffusion 1.x and 2.x: cross-attention to text states.

Shapes: B samples, L tokens of E features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.models.denoiser import Conditions, Denoiser


class UNet(Denoiser):
    """A ``UNet2DConditionModel``; its one condition is ``text``, the text states [B, L, E]."""

    class_name = "UNet2DConditionModel"
    patterns = {  # noqa: RUF012 (declared a class variable by the base)
        "cross_kv": r"\battn2\.to_[kv]\.",
        "cross_attention": r"\battn2\.",
        "attention": r"\battn[12]\.",
        "matrices": r"^(?!.*norm).*\.weight$",  # of all linear layers and convolutions
        "all": r"",
    }

    @classmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse UNets that need more than text states, as SDXL's and image variations', or more channels (inpainting).

        Raises:
            UserError: It is one.
        """
        for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
            if config.get(name) is not None:
                raise UserError(
                    f"{key}: found {name} {config[name]!r}, expected none: text states as the one condition"
                )
        channels = config.get("in_channels", 4), config.get("out_channels", 4)
        if channels[0] != channels[1]:
            raise UserError(f"{key}: found {channels[0]} channels in and {channels[1]} out, expected as many of both")

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Call the network."""
        prediction: Tensor = self.network(noisy, timesteps, encoder_hidden_states=conditions["text"]).sample
        return prediction

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return C, H, W of the latents that the network was made for."""
        size = self._config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(self._config.in_channels), int(height), int(width)

    @property
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shape of the text states [L, E], of any number of tokens."""
        return {"text": (None, int(self._config.cross_attention_dim))}

    @property
    def _config(self) -> Any:
        return self.network.config
