"""What transformers over patches of a latent have in common.

Shapes: C x H x W a latent.
"""

from __future__ import annotations

from lightning_attr.models.denoiser import Denoiser


class PatchDenoiser(Denoiser):
    """A transformer whose config names the side of its square latents and of its patches."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return C, H, W of the latents that the network was made for."""
        return int(self._config.in_channels), int(self._config.sample_size), int(self._config.sample_size)

    @property
    def multiple(self) -> int:
        """Return the side of a patch."""
        return int(self._config.patch_size)
