"""The features of all samples of a store, computed once and kept on disk.

Shapes: N samples, R views or captions of a sample, F features.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts.chunks import Chunks
from lightning_attr.errors import UserError
from lightning_attr.features.base import Feature

#: Samples whose features are computed at once.
BATCH = 32

#: More numbers of a sample than a linear map of them should have rows.
MOST = 4096


class Rows(NamedTuple):
    """Features of a store's samples.

    Attributes:
        values: Brought to length 1, float32 [N, R, F].
        counts: How many rows of each sample are its own, int64 [N].
    """

    values: Tensor
    counts: Tensor

    def to(self, device: torch.device) -> Rows:
        """Return the same on a device."""
        return Rows(self.values.to(device), self.counts.to(device))


@torch.no_grad()
def kept_rows(feature: Feature, store: Store, folder: Path, device: torch.device) -> Rows:
    """Return the features of all samples; those that are not in ``folder`` yet are computed and written there.

    Stopped and started again, it goes on with the first chunk that is missing. Features of another store, or of other
    settings or weights, have a folder of their own below.

    Args:
        feature: What is computed.
        store: The samples.
        folder: Where chunks are kept.
        device: Where to compute.

    Raises:
        UserError: They are no numbers, or too many of each sample for a linear map.
    """
    settings = {"feature": feature.config(), "digests": {"store": store.digest}}
    chunks = Chunks(folder / xxhash.xxh3_64_hexdigest(repr(settings).encode()), settings, np.arange(len(store)), BATCH)
    for index in chunks.pending():
        rows = []
        for positions in chunks.batches(index):
            batch = {name: value.to(device) for name, value in whole_samples(store, positions).items()}
            rows.append(F.normalize(feature.to(device).rows(store, batch).float(), dim=2).cpu())
        _check(feature, store, rows[0])
        chunks.write(index, torch.cat(rows))
    values = torch.cat(list(chunks))
    captions = torch.from_numpy(store.caption_counts.astype(np.int64))
    counts = feature.counts({"captions": captions})
    return Rows(values, torch.full((len(values),), values.shape[1]) if counts is None else counts)


def _check(feature: Feature, store: Store, rows: Tensor) -> None:
    if rows.shape[2] > MOST:
        raise UserError(f"feature {feature.name}: found {rows.shape[2]} numbers of a row, expected at most {MOST}")
    if not bool(rows.isfinite().all()):
        raise UserError(f"{store.path}: found features {feature.name} that are not finite, expected finite numbers")
