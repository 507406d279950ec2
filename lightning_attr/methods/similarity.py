"""Cosine similarity of what images are compared by.

Shapes: Q queries, B samples, R views or captions of a sample, F features.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import digest_of
from lightning_attr.encoders import check_encoders
from lightning_attr.errors import UserError
from lightning_attr.features import WORDS, Feature, Vision, largest_cosines
from lightning_attr.features.tuned import backbone, load_tuned
from lightning_attr.methods.base import Batch, Context, Method


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
        rows_QRF = self._feature.to(context.device).rows(context.query_store, context.queries)
        self._query_QF = self.of_queries(rows_QRF[:, 0])

    def measure(self, batch: Batch) -> Tensor:
        """Return the cosines [B, Q]."""
        rows_BRF = self.of_samples(self._feature.rows(self._store, batch))
        return largest_cosines(self._query_QF, rows_BRF, self._feature.counts(batch))

    def of_queries(self, rows: Tensor) -> Tensor:
        """Return what is compared of the queries' features [Q, F]: they themselves."""
        return rows

    def of_samples(self, rows: Tensor) -> Tensor:
        """Return what is compared of the samples' features [B, R, F]: they themselves."""
        return rows


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


class TunedSimilarity(Similarity):
    """Cosine of a feature that was tuned to attribution by the task ``TunedFeatures``.

    Args:
        features: Its ``features.safetensors``, which names the feature that it is over.
        feature: That feature, where its weights lie elsewhere now; None is where they were.
    """

    def __init__(self, features: InputPath, feature: Feature | None = None) -> None:
        self._mappers, config, self._tuning = load_tuned(features)
        super().__init__(backbone(features, config, feature))
        self.features = features
        self.feature = feature

    @property
    def name(self) -> str:
        """Return a name such as ``tuned-latent``."""
        return f"tuned-{self._feature.name}"

    def prepare(self, context: Context) -> None:
        """Take the queries' features.

        Raises:
            UserError: The stores were made with other encoders, or their features are of another size.
        """
        if self._feature.needs_encoders():
            check_encoders(context.store, digest_of(self._tuning, "encoders"), self.features)
        self._mappers.to(context.device)
        super().prepare(context)

    def of_queries(self, rows: Tensor) -> Tensor:
        """Return the mapped features of queries [Q, F]."""
        if rows.shape[-1] != (size := len(self._mappers.query.bias)):
            raise UserError(f"{self.features}: tuned on features of {size} numbers, found {rows.shape[-1]} of a query")
        return self._mappers.query(rows.float())  # type: ignore[no-any-return]

    def of_samples(self, rows: Tensor) -> Tensor:
        """Return the mapped features of samples [B, R, F]."""
        return self._mappers.sample(rows.float())  # type: ignore[no-any-return]
