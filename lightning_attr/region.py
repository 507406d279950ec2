"""The part of an image that is asked about.

Shapes: H x W places of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lightning_attr.errors import UserError, one_line
from lightning_attr.image_files import open_image


def read_region(path: str | Path, shape: Sequence[int]) -> Tensor:
    """Read a region: how much each place of a latent counts, float32 [H, W] from 0 to 1.

    Args:
        path: A greyscale image of any size: white is asked about, black is not.
        shape: H, W of the latent; a place counts as the mean of what it covers of the image.

    Raises:
        UserError: It is missing, not an image, or all black.
    """
    if not Path(path).is_file():
        raise UserError(f"region {path}: no such file")
    height, width = shape
    try:
        with open_image(Path(path)) as image:
            resized = image.convert("L").resize((width, height), Image.Resampling.BOX)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"region {path}: damaged or not an image: {one_line(error)}") from error
    region = torch.from_numpy(np.asarray(resized, np.float32) / 255)
    if not bool((region > 0).any()):
        raise UserError(
            f"region {path}: all black at {height} x {width}, expected white where the query is asked about"
        )
    return region
