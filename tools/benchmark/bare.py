"""A bare loop of Pillow; its processes import this module, which needs nothing else."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 512


def bare(path: Path) -> None:
    """Read the centre square of an image as anybody would, at ``SIZE`` pixels a side; it is sent nowhere."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
