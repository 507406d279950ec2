"""The loss sweep over a store, against the same network called in a bare loop on tensors that are there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from datamodules import Store
from datamodules.loading import whole_samples
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.loss_sweep import LossSweep
from lightning_attr.models import Model, build
from lightning_attr.noise import Draws, draw_timesteps, shared_noise
from tools.benchmark.timing import Figure, Sizes, Timed, ratio, seconds
from tools.benchmark.train import CONFIG

BATCH = 256
DRAWS = Draws()


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure all captions of the shapes set at ten draws, with the demo's network."""
    path = folder / "swept.lmdb"
    prepare_shapes(["--out", str(path), "--count", str(sizes.swept), "--planted", "0"])
    model = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    swept_model = build(model["denoiser"], model["scheduler"])
    swept_model.network.eval()
    store = Store(path)
    swept = _swept(folder, swept_model, store)
    bare = seconds(BareSweep(swept_model, store))
    value = ratio(swept, bare, sizes.repeats)
    yield Figure("sweep_vs_bare", value, "the network: reading, noise and writing are a few per cent", 0.95)


def _swept(folder: Path, model: Model, store: Store) -> Timed:
    """Return a timed sweep that nothing is there of yet."""
    runs = count()

    def sweep() -> None:
        path = folder / f"losses-{next(runs)}.safetensors"
        LossSweep(path, {}, len(store), BATCH).run(model, store, DRAWS)

    return seconds(sweep)


class BareSweep:
    """Losses of tensors in memory: only the network and the loss, on noises that are there already."""

    def __init__(self, model: Model, store: Store) -> None:
        self.model = model
        starts = range(0, len(store), BATCH)
        positions = [np.arange(start, min(start + BATCH, len(store))) for start in starts]
        samples = [whole_samples(store, batch) for batch in positions]
        self.batches = [{name: part[name].float() for name in ("latent", "text")} for part in samples]
        self.timesteps = draw_timesteps(DRAWS, model.process.levels)
        self.noises = shared_noise(DRAWS, range(len(DRAWS)), store.schema.fields["latent"].shape[1:])

    @torch.no_grad()
    def __call__(self) -> Sequence[Tensor]:
        """Run one sweep."""
        return [
            self._losses(latent, text, draw)
            for batch in self.batches
            for draw in range(len(DRAWS))
            for latent in batch["latent"].unbind(1)
            for text in batch["text"].unbind(1)
        ]

    def _losses(self, latent: Tensor, text: Tensor, draw: int) -> Tensor:
        timesteps, noise = self.timesteps[draw].expand(len(latent)), self.noises[draw].expand_as(latent)
        return self.model.losses(latent, {"text": text}, timesteps, noise)
