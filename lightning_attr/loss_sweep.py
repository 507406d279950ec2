"""The loss sweep: the losses of every sample of a store, resumable and sharded over ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.errors import UserError
from lightning_attr.losses import sample_losses
from lightning_attr.models import Model
from lightning_attr.noise import Draws

#: Batches between two writes; a kill loses at most this much work.
BATCHES_PER_PART = 8


class LossSweep:
    """Losses [N, V, D] of the whole store under one model, kept in one file.

    Finished parts lie beside the file until all are there, so that a killed sweep continues. A file or a part that was
    made with other settings is never used.

    Args:
        path: Where the losses go.
        settings: All that the losses depend on: digests of store and weights, draws, views, captions.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))  # as a file gives it back, which has no tuples
        self._parts = self.path.with_name(f"{self.path.name}.parts")

    def cached(self) -> Tensor | None:
        """Return the losses where a file of the same settings is there, else None."""
        return self._load(self.path)

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
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        shard: tuple[int, int] = (0, 1),
        on_batch: Callable[[int], object] = lambda samples: None,
    ) -> None:
        """Sweep the parts of this rank that are not there yet.

        Args:
            model: The model.
            store: The samples.
            draws: Where to measure.
            views: Only the first so many views.
            captions: Only the first so many captions.
            batch_size: Samples in a forward pass.
            device: Where the model is.
            shard: Rank and number of ranks.
            on_batch: Told how many samples were done, for a progress bar.
        """
        rank, ranks = shard
        for positions in self._part_positions(len(store), batch_size)[rank::ranks]:
            part = self._part(positions)
            if self._load(part) is None:
                losses = []
                for batch in np.split(positions, range(batch_size, len(positions), batch_size)):
                    samples = {name: value.to(device) for name, value in whole_samples(store, batch).items()}
                    losses.append(sample_losses(model, samples, draws, views, captions).cpu())
                    on_batch(len(batch))
                save_tensors(part, {"losses": torch.cat(losses)}, self.settings)
            else:
                on_batch(len(positions))

    def join(self, samples: int, batch_size: int) -> Tensor:
        """Join the parts of all ranks into the file and return the losses [N, V, D].

        Raises:
            UserError: A part is missing.
        """
        if (done := self.cached()) is not None:  # another run of the same sweep was faster
            return done
        losses = []
        for positions in self._part_positions(samples, batch_size):
            part = self._load(self._part(positions))
            if part is None:
                raise UserError(f"{self._part(positions)}: missing or of another sweep; run the same command again")
            losses.append(part)
        joined = torch.cat(losses)
        save_tensors(self.path, {"losses": joined}, self.settings)
        shutil.rmtree(self._parts, ignore_errors=True)
        return joined

    def _load(self, path: Path) -> Tensor | None:
        if not path.exists():
            return None
        tensors, settings = load_tensors(path)
        return tensors["losses"] if settings == self.settings else None

    def _part(self, positions: np.ndarray[Any, Any]) -> Path:
        return self._parts / f"{positions[0]:09d}-{positions[-1]:09d}.safetensors"

    @staticmethod
    def _part_positions(samples: int, batch_size: int) -> list[np.ndarray[Any, Any]]:
        step = batch_size * BATCHES_PER_PART
        return [np.arange(start, min(start + step, samples)) for start in range(0, samples, step)]
