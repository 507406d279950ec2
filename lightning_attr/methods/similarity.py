"""Cosine similarity of latents or of text states: the baseline that needs no model."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_attr.methods.base import Batch, Method


class Similarity(Method):
    """Cosine of flattened features; a sample counts with its most similar view or caption.

    Args:
        feature: ``latent`` (the image; with ``PatchPCA`` the pixels in another basis) or ``text`` (the captions).
    """

    def __init__(self, feature: Literal["latent", "text"] = "latent") -> None:
        self.feature: Literal["latent", "text"] = feature

    @property
    def name(self) -> str:
        """``similarity-latent`` or ``similarity-text``."""
        return f"similarity-{self.feature}"

    def score(self, queries: Batch, batch: Batch) -> Tensor:
        """Return the cosines [Q, B]."""
        query_QF = F.normalize(queries[self.feature][:, 0].flatten(1).float(), dim=1)
        sample_BVF = F.normalize(batch[self.feature].flatten(2).float(), dim=2)
        return (sample_BVF @ query_QF.T).amax(1).T
