"""Transformers of PixArt-alpha and PixArt-sigma: cross-attention to masked text states.

Shapes: B samples, C x H x W a latent, L tokens of E features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.models.denoiser import Conditions, check_sizes
from lightning_attr.models.patches import PatchDenoiser

#: The side in pixels of what a place of the latent shows: all PixArt models have autoencoders of Stable Diffusion.
PIXELS = 8


class PixArt(PatchDenoiser):
    """A ``PixArtTransformer2DModel``, given ``text`` [B, L, E] and ``mask`` [B, L], one where a token says something.

    It may predict a variance beside the noise: the second half of its channels, which no loss here is of. Those for
    1024 pixels are also told height and width, which are the latent's.
    """

    class_name = "PixArtTransformer2DModel"
    patterns = {  # noqa: RUF012 (declared a class variable by the base)
        "cross_kv": r"\battn2\.to_[kv]\.",
        "cross_attention": r"\battn2\.",
        "attention": r"\battn[12]\.",
        "matrices": r"\.weight$",  # its norms have no weights
        "all": r"",
    }
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")

    @classmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse transformers without text, or with other channels.

        Raises:
            UserError: It is one, or its config names sizes that no network has.
        """
        names = ("in_channels", "out_channels", "patch_size", "sample_size", "num_attention_heads")
        check_sizes(key, config, (*names, "attention_head_dim", "cross_attention_dim", "caption_channels"))
        check_sizes(key, config, ["num_layers"], 1000)
        if config.get("caption_channels") is None:
            raise UserError(f"{key}: found no caption_channels, expected the width of the text states")
        if config.get("norm_elementwise_affine") or config.get("norm_type", "ada_norm_single") != "ada_norm_single":
            raise UserError(f"{key}: found norms with weights of their own, expected PixArt's")
        channels, out = config.get("in_channels", 4), config.get("out_channels", 8)
        if out not in (channels, 2 * channels):
            raise UserError(f"{key}: found {channels} channels in and {out} out, expected as many of both or twice")

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Call the network, and leave out the variance."""
        text, (height, width) = conditions["text"], noisy.shape[2:]
        sizes = text.new_tensor([[PIXELS * height, PIXELS * width]]).expand(len(noisy), 2)
        shape = text.new_tensor([[height / width]]).expand(len(noisy), 1)
        prediction: Tensor = self.network(
            noisy,
            encoder_hidden_states=text,
            encoder_attention_mask=conditions["mask"],
            timestep=times,
            added_cond_kwargs={"resolution": sizes, "aspect_ratio": shape},
        ).sample
        return prediction[:, : noisy.shape[1]]

    @property
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shapes of the text states [L, E] and of their mask [L], of any number of tokens."""
        return {"text": (None, int(self._config.caption_channels)), "mask": (None,)}
