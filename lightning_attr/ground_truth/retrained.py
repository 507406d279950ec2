"""What a retraining measured: the queries under the original and under the retrained model.

Shapes: Q queries, K removed samples, D draws, C x H x W a latent; of an image, X x Y pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.expect import expect_settings, expect_tensors

#: The tensors of such a file; all but two of each model.
TENSORS: Mapping[str, str] = {
    "query_id": "int Q",
    "removed_id": "int K",
    **{
        f"{model}_{name}": words
        for model in ("original", "retrained")
        for name, words in (("losses", "finite Q D"), ("latent", "finite Q C H W"), ("image", "int Q X Y rgb"))
    },
}


def load_retrained(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read ``retraining.safetensors``: (tensors, settings).

    Raises:
        UserError: It is missing, damaged, or holds something else.
    """
    tensors, settings = load_tensors(path, "retraining")
    expect_tensors(path, tensors, TENSORS)
    expect_settings(str(path), settings, {"method": str, "k": int})
    return tensors, settings
