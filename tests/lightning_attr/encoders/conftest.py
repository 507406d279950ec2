import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


@pytest.fixture(scope="session")
def coco_images() -> Tensor:
    """Some 64x64 crops of COCO: uint8 [500, 64, 64, 3]."""
    default = Path(__file__).parents[4] / "shared" / "data" / "coco64"
    folder = Path(os.environ.get("LIGHTNING_ATTR_COCO64", default)) / "train2017"
    files = sorted(folder.glob("*.jpg"))[:500]
    if len(files) < 500:
        pytest.skip(f"needs 500 COCO images at 64x64 in {folder} (set LIGHTNING_ATTR_COCO64)")
    return torch.from_numpy(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]))


@pytest.fixture
def images() -> Tensor:
    """Smooth random images: uint8 [24, 16, 16, 3]."""
    coarse = torch.rand(24, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, 16, mode="bicubic", align_corners=True)
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
