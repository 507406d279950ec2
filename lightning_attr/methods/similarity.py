"""Cosine similarity of what images are compared by.

Shapes: Q queries, B samples.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.features import Feature, Latent, Pixel, Text, Vision, largest_cosines
from lightning_attr.methods.base import Batch, Context, Method

#: Features that need no settings, by their words.
WORDS: dict[str, type[Feature]] = {"latent": Latent, "text": Text, "pixel": Pixel}


class Similarity(Method):
    """Cosine of a feature; a sample counts with its most similar view or caption.

    Args:
        feature: ``latent`` (the image; with ``PatchPCA`` the pixels in another basis), ``text`` (the captions),
            ``pixel`` (the thumbnails, resized to 64 x 64), or a class of ``lightning_attr.features``.
    """

    def __init__(self, feature: Literal["latent", "text", "pixel"] | Feature = "latent") -> None:
        self.feature: Any = feature
        self._feature = WORDS[feature]() if isinstance(feature, str) else feature

    @property
    def name(self) -> str:
        """Return a name such as ``similarity-latent``."""
        return f"similarity-{self._feature.name}"

    def prepare(self, context: Context) -> None:
        """Take the queries' features."""
        self._store = context.store
        self._query_QF = self._feature.to(context.device).rows(context.query_store, context.queries)[:, 0]

    def measure(self, batch: Batch) -> Tensor:
        """Return the cosines [B, Q]."""
        rows_BRF = self._feature.rows(self._store, batch)
        return largest_cosines(self._query_QF, rows_BRF, self._feature.counts(batch))


class VisionSimilarity(Similarity):
    """Cosine of what a vision model sees: DINO, DINOv2 or CLIP, through ``transformers`` (the extra ``hf``).

    It looks at the thumbnails; a sample counts with its most similar view.

    Args:
        model: Hub name or local folder of the model, such as ``facebook/dinov2-small``.
    """

    def __init__(self, model: InputPath) -> None:
        super().__init__(Vision(model))
        self.model = model

    def settings(self) -> dict[str, Any]:
        """Return the model's name and the digest of its weights: under one name others may come to lie.

        Raises:
            UserError: ``transformers`` is not installed, or the model cannot be loaded.
        """
        return {"model": self.model, "weights": self._feature.weights}
