"""Cosine similarity of images or captions: the baselines that look at no trained denoiser.

Shapes: Q queries, B samples, R views or captions of a sample, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.encoders import VisionFeatures, thumb_images
from lightning_attr.methods.base import Batch, Context, Method
from lightning_attr.precision import outside_autocast

SIDE = 64
"""Pixels a side at which pixels are compared: stores may hold thumbnails of several sizes."""


@outside_autocast
def largest_cosines(query_QF: Tensor, sample_BRF: Tensor, counts_B: Tensor | None = None) -> Tensor:
    """Return the cosine of each sample's most similar row with every query, float32 [B, Q].

    Args:
        query_QF: Features of the queries.
        sample_BRF: Features of the samples.
        counts_B: How many rows of each sample are its own, the rest being padding; None where all are.
    """
    cosine_BRQ = F.normalize(sample_BRF.float(), dim=2) @ F.normalize(query_QF.float(), dim=1).T
    if counts_B is not None:
        padding_BR = torch.arange(sample_BRF.shape[1], device=counts_B.device) >= counts_B[:, None]
        cosine_BRQ = cosine_BRQ.masked_fill(padding_BR[:, :, None], -torch.inf)
    return cosine_BRQ.amax(1)


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return RGB pictures at a common size as numbers in [-1, 1], float32 [B, F]."""
    resized = [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in resized])).flatten(1) / 127.5 - 1


class Similarity(Method):
    """Cosine of flattened latents, text states or pixels; a sample counts with its most similar view or caption.

    Args:
        feature: ``latent`` (the image; with ``PatchPCA`` the pixels in another basis), ``text`` (the captions) or
            ``pixel`` (the thumbnails, resized to 64 x 64).
    """

    def __init__(self, feature: Literal["latent", "text", "pixel"] = "latent") -> None:
        self.feature: Literal["latent", "text", "pixel"] = feature

    @property
    def name(self) -> str:
        """Return a name such as ``similarity-latent``."""
        return f"similarity-{self.feature}"

    def prepare(self, context: Context) -> None:
        """Take the queries' features."""
        if self.feature == "pixel":
            self._pictures = _Pictures(context, lambda pictures: pixels(pictures).to(context.device))
        else:
            self._query_QF = context.queries[self.feature][:, 0].flatten(1).to(context.device)

    def measure(self, batch: Batch) -> Tensor:
        """Return the cosines [B, Q]."""
        if self.feature == "pixel":
            return self._pictures.cosines(batch)
        counts_B = batch["captions"] if self.feature == "text" else None
        return largest_cosines(self._query_QF, batch[self.feature].flatten(2), counts_B)


class VisionSimilarity(Method):
    """Cosine of what a vision model sees: DINO, DINOv2 or CLIP, through ``transformers`` (the extra ``hf``).

    It looks at the thumbnails; a sample counts with its most similar view.

    Args:
        model: Hub name or local folder of the model, such as ``facebook/dinov2-small``.
    """

    def __init__(self, model: InputPath) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """Return ``similarity-`` and the last part of the model's name."""
        return f"similarity-{Path(self.model).name}"

    def settings(self) -> dict[str, Any]:
        """Return the model's name and the digest of its weights: under one name others may come to lie.

        Raises:
            UserError: ``transformers`` is not installed, or the model cannot be loaded.
        """
        return {**super().settings(), "weights": self._features.weights}

    @cached_property
    def _features(self) -> VisionFeatures:
        return VisionFeatures(self.model)

    def prepare(self, context: Context) -> None:
        """Load the model, and look at the queries."""
        self._pictures = _Pictures(context, self._features.to(context.device).encode)

    def measure(self, batch: Batch) -> Tensor:
        """Return the cosines [B, Q]."""
        return self._pictures.cosines(batch)


class _Pictures:
    """Thumbnails of queries and samples, compared by their features.

    A sample's views are the image and, where the store has a second one, its horizontal flip.
    """

    def __init__(self, context: Context, features: Callable[[Sequence[Image.Image]], Tensor]) -> None:
        self._store, self._features = context.store, features
        self._query_QF = features(thumb_images(context.query_store, context.queries["id"].cpu().numpy()))

    def cosines(self, batch: Batch) -> Tensor:
        """Return the cosines [B, Q]."""
        pictures = thumb_images(self._store, batch["id"].cpu().numpy())
        views = [pictures, [ImageOps.mirror(picture) for picture in pictures]][: batch["latent"].shape[1]]
        return largest_cosines(self._query_QF, torch.stack([self._features(view) for view in views], dim=1))
