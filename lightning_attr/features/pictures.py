"""Features of the thumbnails: pixels, and what a vision model sees.

Shapes: B samples, R views of a sample, F features, H x W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.encoders import VisionFeatures, thumb_images
from lightning_attr.features.base import Batch, Feature

SIDE = 64
"""Pixels a side at which pixels are compared: stores may hold thumbnails of several sizes."""


class PictureFeature(Feature):
    """A feature of RGB pictures. A sample's views are its thumbnail and, where the store has a second, its flip."""

    @abstractmethod
    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the features of RGB pictures, float32 [B, F]."""

    def rows(self, store: Store, batch: Batch) -> Tensor:
        """Return the features [B, R, F], a row for each view."""
        pictures = thumb_images(store, batch["id"].cpu().numpy())
        views = [pictures, [ImageOps.mirror(picture) for picture in pictures]][: batch["latent"].shape[1]]
        return torch.stack([self.encode(view) for view in views], dim=1)


class Pixel(PictureFeature):
    """The pixels, resized to 64 x 64, as numbers in [-1, 1]."""

    _device: torch.device | None = None

    def to(self, device: torch.device, /) -> Self:
        """Have the rows on ``device``."""
        self._device = device
        return self

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the pixels, float32 [B, F]."""
        resized = [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in pictures]
        numbers = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized]))
        return numbers.to(self._device).flatten(1) / 127.5 - 1


class Vision(PictureFeature):
    """What a vision model sees: DINO, DINOv2 or CLIP, through ``transformers`` (the extra ``hf``).

    Args:
        model: Hub name or local folder of the model, such as ``facebook/dinov2-small``.
    """

    def __init__(self, model: InputPath) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """Return the last part of the model's name."""
        return Path(self.model).name

    @property
    def weights(self) -> str:
        """Return the digest of the model's weights: under one name others may come to lie.

        Raises:
            UserError: ``transformers`` is not installed, or the model cannot be loaded.
        """
        return self._features.weights

    @cached_property
    def _features(self) -> VisionFeatures:
        return VisionFeatures(self.model)

    def to(self, device: torch.device, /) -> Self:
        """Move the model to ``device``."""
        self._features.to(device)
        return self

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the model's features, float32 [B, F]."""
        return self._features.encode(pictures)
