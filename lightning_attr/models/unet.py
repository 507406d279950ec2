"""UNets of Stable Diffusion 1.x and 2.x: cross-attention to text states.

Shapes: B samples, L tokens of E features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.models.denoiser import Conditions, Denoiser

#: Arguments of networks that are given more than text states.
MORE_INPUTS = (
    "addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim",
    "time_cond_proj_dim",
)  # fmt: skip


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
    pipelines = ("StableDiffusionPipeline",)

    @classmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse UNets that need more than text states, as SDXL's and image variations', or more channels (inpainting).

        Raises:
            UserError: It is one, or its config names sizes that no network has.
        """
        for name in MORE_INPUTS:
            if config.get(name) is not None:
                raise UserError(
                    f"{key}: found {name} {config[name]!r}, expected none: text states as the one condition"
                )
        if (attention := config.get("attention_type", "default")) != "default":  # GLIGEN's boxes
            raise UserError(f"{key}: found attention_type {attention!r}, expected 'default'")
        for name in ("in_channels", "out_channels", "cross_attention_dim"):
            if name in config and not _is_size(config[name]):
                raise UserError(f"{key}: found {name} {config[name]!r}, expected one positive number")
        size = config.get("sample_size")
        sizes = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
        if size is not None and not all(map(_is_size, sizes)):
            raise UserError(f"{key}: found sample_size {size!r}, expected a positive number, or two")
        for name in ("layers_per_block", "transformer_layers_per_block"):
            if any(number > 100 for number in _numbers(config.get(name))):  # to build them takes for ever
                raise UserError(f"{key}: found {name} {config[name]!r}, expected at most 100")
        channels = config.get("in_channels", 4), config.get("out_channels", 4)
        if channels[0] != channels[1]:
            raise UserError(f"{key}: found {channels[0]} channels in and {channels[1]} out, expected as many of both")

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Call the network."""
        prediction: Tensor = self.network(noisy, times, encoder_hidden_states=conditions["text"]).sample
        return prediction

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return C, H, W of the latents that the network was made for; the smallest where its config names no size."""
        size = self._config.sample_size or self.multiple
        height, width = (size, size) if isinstance(size, int) else size
        return int(self._config.in_channels), int(height), int(width)

    @property
    def multiple(self) -> int:
        """Return by how much the network makes latents smaller: every block but the last halves them."""
        return int(2 ** (len(self._config.down_block_types) - 1))

    @property
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shape of the text states [L, E], of any number of tokens."""
        return {"text": (None, int(self._config.cross_attention_dim))}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _numbers(value: Any) -> Iterator[float]:
    """Yield all numbers in nested lists."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value
