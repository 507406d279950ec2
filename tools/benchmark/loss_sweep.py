"""The loss sweep over a store, against the same network called in a bare loop on tensors that are there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from datamodules import Store
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.denoisers import build_denoiser, build_scheduler
from lightning_attr.diffusion import denoising_loss
from lightning_attr.loss_sweep import LossSweep, read_samples
from lightning_attr.noise import Draws, draw_timesteps, shared_noise
from tools.benchmark.timing import Figure, Sizes, Timed, ratio, seconds
from tools.benchmark.train import CONFIG

BATCH = 256
DRAWS = Draws()


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """All captions of the shapes set at ten draws, with the demo's network."""
    path = folder / "swept.lmdb"
    prepare_shapes(["--out", str(path), "--count", str(sizes.swept), "--planted", "0"])
    model = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    network = build_denoiser(model["denoiser"], seed=0).eval()
    scheduler = build_scheduler(model["scheduler"])
    store = Store(path)
    swept = _swept(folder, network, scheduler, store)
    bare = seconds(BareSweep(network, scheduler, store))
    value = ratio(swept, bare, sizes.repeats)
    yield Figure("sweep_vs_bare", value, "the network: reading, noise and writing are a few per cent", 0.95)


def _swept(folder: Path, network: nn.Module, scheduler: Any, store: Store) -> Timed:
    """A sweep that nothing is there of yet."""
    runs = count()

    def sweep() -> None:
        path = folder / f"losses-{next(runs)}.safetensors"
        LossSweep(path, {}).run(network, scheduler, store, DRAWS, batch_size=BATCH)

    return seconds(sweep)


class BareSweep:
    """Losses of tensors in memory: only the network and the loss, on noises that are there already."""

    def __init__(self, network: nn.Module, scheduler: Any, store: Store) -> None:
        self.network = network
        self.scheduler = scheduler
        starts = range(0, len(store), BATCH)
        positions = [np.arange(start, min(start + BATCH, len(store))) for start in starts]
        samples = [read_samples(store, batch, "cpu") for batch in positions]
        self.batches = [{name: part[name].float() for name in ("latent", "text")} for part in samples]
        self.timesteps = draw_timesteps(DRAWS, len(scheduler.alphas_cumprod))
        self.noises = shared_noise(DRAWS, range(len(DRAWS)), store.schema.fields["latent"].shape[1:])

    @torch.no_grad()
    def __call__(self) -> Sequence[Tensor]:
        """One sweep."""
        return [
            self._losses(latent, text, draw)
            for batch in self.batches
            for draw in range(len(DRAWS))
            for latent in batch["latent"].unbind(1)
            for text in batch["text"].unbind(1)
        ]

    def _losses(self, latent: Tensor, text: Tensor, draw: int) -> Tensor:
        timesteps, noise = self.timesteps[draw].expand(len(latent)), self.noises[draw].expand_as(latent)
        return denoising_loss(self.network, self.scheduler, latent, text, timesteps, noise)
