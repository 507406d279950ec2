"""Features that are in the store already: latents and text states.

Shapes: B samples, R views or captions of a sample, F features.
"""

from __future__ import annotations

from torch import Tensor

from datamodules.store import Store
from lightning_attr.features.base import Batch, Feature


class Latent(Feature):
    """The flattened latents: with ``PatchPCA`` the pixels in another basis."""

    def rows(self, store: Store, batch: Batch) -> Tensor:
        """Return the latents [B, R, F], a row for each view."""
        return batch["latent"].flatten(2)

    def needs_encoders(self) -> bool:
        """Return True: another encoder gives other latents."""
        return True


class Text(Feature):
    """The flattened text states."""

    def rows(self, store: Store, batch: Batch) -> Tensor:
        """Return the states [B, R, F], a row for each caption."""
        return batch["text"].flatten(2)

    def counts(self, batch: Batch) -> Tensor:
        """Return the numbers of captions [B]."""
        return batch["captions"]

    def needs_encoders(self) -> bool:
        """Return True: another encoder gives other states."""
        return True
