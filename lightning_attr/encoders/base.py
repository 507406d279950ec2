"""What an encoder is: two protocols.

Shape suffixes: B images or texts, H and W pixels, C, h and w latent channels, height and width.
"""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Encoder(Protocol):
    """A frozen map that a store can name: ``config()`` and ``state()`` are enough to build it again."""

    def config(self) -> dict[str, Any]:
        """Return the name of the class under "class", and its arguments, JSON-ready."""
        ...

    def state(self) -> bytes | None:
        """Return the fitted numbers as safetensors bytes; None where the arguments alone determine the encoder."""
        ...

    def to(self, device: torch.device | str, /) -> Self:
        """Move to ``device``, where the results will be."""
        ...


class ImageEncoder(Encoder, Protocol):
    """Images to latents and back."""

    @property
    def channels(self) -> int:
        """Return the channels of a latent."""
        ...

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return (C, h, w) of the latent of a square image of ``image_size`` pixels.

        Raises:
            UserError: The encoder cannot take that size.
        """
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 images [B, H, W, 3] to float32 latents [B, C, h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode float latents [B, C, h, w] to uint8 images [B, H, W, 3]."""
        ...


class TextEncoder(Encoder, Protocol):
    """Texts to conditions: what the denoiser is given beside the latent."""

    @property
    def conditions(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the conditions of a text, by name."""
        ...

    @property
    def room(self) -> int:
        """Return how many tokens of a text are encoded; the rest is cut off."""
        ...

    def lengths(self, texts: list[str]) -> list[int]:
        """Return how many tokens each text has before it is cut, without begin and end and those that say nothing."""
        ...

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Encode texts to float32 conditions [B, ...] by name."""
        ...

    def null(self) -> dict[str, Tensor]:
        """Return the conditions of no text, which guidance leads away from, without the batch axis."""
        ...
