"""The loss sweep: the losses of every sample of a store, resumable and sharded over ranks.

Shapes: N samples, V views, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, read_header, save_tensors
from lightning_attr.artifacts.chunks import Chunks
from lightning_attr.artifacts.expect import expect_tensors
from lightning_attr.console import warn
from lightning_attr.errors import UserError
from lightning_attr.losses import sample_losses
from lightning_attr.models import Model
from lightning_attr.noise import Draws

#: Batches in a chunk, a few seconds' worth: writing one waits for the disk.
BATCHES_PER_CHUNK = 8


class LossSweep:
    """Losses [N, V, D] of the whole store under one model, kept in one file.

    Finished chunks lie beside the file until all are there, so that a killed sweep continues. A file that was made with
    other settings is never used.

    Args:
        path: Where the losses go.
        settings: All that the losses depend on: digests of store and weights, draws, views, captions.
        samples: How many the store has.
        batch_size: Samples in a forward pass.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], samples: int, batch_size: int = 256) -> None:
        self.path = Path(path)
        folder = self.path.with_name(f"{self.path.name}.chunks")
        self._chunks = Chunks(folder, settings, np.arange(samples), batch_size, batches=BATCHES_PER_CHUNK)

    def cached(self) -> Tensor | None:
        """Return the losses where a file of the same settings is there, else None; a damaged one is none.

        Raises:
            UserError: What is there holds no losses.
        """
        if not self.path.exists():
            return None
        try:
            tensors, settings = load_tensors(self.path, "losses")
        except UserError as error:
            if read_header(self.path).kind != "losses":
                raise
            warn(f"{error}; they are measured again")
            return None
        expect_tensors(self.path, tensors, {"losses": "finite N V D"}, N=sum(map(len, self._chunks.positions)))
        return tensors["losses"] if settings == self._chunks.settings else None

    def differs(self) -> bool:
        """Return whether a file is there that cannot be used."""
        return self.path.exists() and self.cached() is None

    def run(
        self,
        model: Model,
        store: Store,
        draws: Draws,
        *,
        views: int | None = None,
        captions: int | None = None,
        device: torch.device | str = "cpu",
        shard: tuple[int, int] = (0, 1),
        on_batch: Callable[[int], object] = lambda samples: None,
    ) -> None:
        """Measure the chunks of this rank that are not there yet.

        Args:
            model: The model.
            store: The samples.
            draws: Where to measure.
            views: Only the first so many views.
            captions: Only the first so many captions.
            device: Where the model is.
            shard: Rank and number of ranks.
            on_batch: Told how many samples were done, for a progress bar.
        """
        pending = self._chunks.pending(*shard)
        on_batch(
            sum(len(self._chunks.positions[chunk]) for chunk in self._chunks.share(*shard) if chunk not in pending)
        )
        for chunk in pending:
            losses = []
            for positions in self._chunks.batches(chunk):
                samples = {name: value.to(device) for name, value in whole_samples(store, positions).items()}
                losses.append(sample_losses(model, samples, draws, views, captions).cpu())
                on_batch(len(positions))
            self._chunks.write(chunk, torch.cat(losses))

    def join(self) -> Tensor:
        """Join the chunks of all ranks into the file and return the losses [N, V, D].

        Raises:
            UserError: A chunk is missing.
        """
        if (done := self.cached()) is not None:  # another run of the same sweep was faster
            return done
        joined = torch.cat(list(self._chunks))
        save_tensors(self.path, "losses", {"losses": joined}, self._chunks.settings)
        self._chunks.delete()
        return joined
