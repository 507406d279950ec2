"""One attribution in memory: a network, samples and queries. All sides of a comparison get the same one.

The network is that of the MSCOCO experiment with a quarter of its widths, heads and tokens, at its own depth and size
of latents: as there, the weights of cross-attention's keys and values are an eighth of all, and a sample's gradient is
13 times as large as its factors. Weights, latents and text states are random, which changes no time.

Shapes: Q queries, N samples in all, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lightning_attr.curvature import KroneckerCurvature
from lightning_attr.curvature.sums import EKFACSums, layers_on, linear_layers
from lightning_attr.layers import captured
from lightning_attr.methods import Context, Method
from lightning_attr.methods.base import Batch
from lightning_attr.models import Inputs, Model, build
from lightning_attr.noise import Draws, keyed_generator

MSCOCO = Path(__file__).parents[2] / "configs" / "mscoco" / "train.yaml"
TOKENS = 77
BATCH = 32


@dataclass(frozen=True)
class Case:
    """A model, samples to be scored, and queries to score them for.

    Attributes:
        model: The model, frozen.
        samples: As ``LatentDataModule`` gives them, one view and one caption each.
        queries: As ``Context`` has them.
        draws: Where everything is measured.
    """

    model: Model
    samples: Batch
    queries: Batch
    draws: Draws

    @cached_property
    def selected(self) -> dict[str, nn.Parameter]:
        """Return the keys and values of cross-attention."""
        return self.model.select("cross_kv")

    def batches(self, size: int = BATCH) -> Iterator[Batch]:
        """Yield the samples."""
        count = len(self.samples["id"])
        for start in range(0, count, size):
            yield {name: value[start : start + size] for name, value in self.samples.items()}

    def context(self, queries: int) -> Context:
        """Return what a method is prepared with, for the first so many queries."""
        chosen = {name: value[:queries] for name, value in self.queries.items()}
        # The methods that are measured here look at no store.
        return Context(chosen, None, None, self.model, self.samples["latent"].device)  # type: ignore[arg-type]

    def scores(self, method: Method, queries: int) -> Tensor:
        """Score all samples for the first so many queries, [Q, N]: the whole work of a run but for files."""
        method.prepare(self.context(queries))
        return torch.cat(list(method.score([method.measure(batch) for batch in self.batches()])), dim=1)

    @property
    def denoiser(self) -> nn.Module:
        """Return the network."""
        return self.model.network

    def losses(self, network: nn.Module, inputs: Inputs) -> Tensor:
        """Return the losses [B] of a network of this architecture."""
        return self.model.over(network).losses(*inputs)

    def ekfac(self, samples: int = 2 * BATCH) -> KroneckerCurvature:
        """Fit EK-FAC on one draw of each of the first samples."""
        generator = keyed_generator("benchmark", "curvature")
        batch = next(self.batches(samples))
        latent, text = batch["latent"][:, 0], batch["text"][:, 0]
        timesteps = torch.from_numpy(generator.integers(0, self.model.process.levels, len(latent)))
        noise = torch.from_numpy(generator.standard_normal(latent.shape, "float32"))
        inputs = Inputs(latent, {"text": text}, timesteps, noise)

        layers = linear_layers(self.denoiser, self.selected, "ekfac")
        calls = captured(layers, lambda: self.losses(self.denoiser, inputs))
        sums = EKFACSums(self.denoiser, self.selected, layers_on(inputs.conditions, calls, layers))
        for part in range(sums.parts):
            sums.enter(part, lambda tensor: tensor)
            sums.add(sums.of_batch(self.denoiser, self.losses, inputs))
        return sums.curvature({"weights": "cross_kv"})


def mscoco_config(share: int = 1) -> dict[str, Any]:
    """Return the config of the MSCOCO experiment's network, its widths and heads divided by ``share``."""
    config = dict(yaml.safe_load(MSCOCO.read_text())["model"]["init_args"]["denoiser"])
    config["block_out_channels"] = [width // share for width in config["block_out_channels"]]
    config["cross_attention_dim"] //= share
    config["attention_head_dim"] //= share  # in fact the number of heads
    return config


def build_case(samples: int, queries: int, timesteps: int, config: Mapping[str, Any], tokens: int) -> Case:
    """Build a case of random numbers."""
    model = build(config, {}, 0)
    model.network.eval().requires_grad_(False)
    made, asked = (_records(count, config, tokens, seed) for seed, count in enumerate((samples, queries)))
    return Case(model, made, asked, Draws(timesteps))


def small_case(samples: int, queries: int, timesteps: int) -> Case:
    """Build the case of a quarter of the MSCOCO network."""
    return build_case(samples, queries, timesteps, mscoco_config(share=4), TOKENS // 4)


def _records(count: int, config: Mapping[str, Any], tokens: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    size = config["sample_size"]
    return {
        "latent": torch.randn(count, 1, config["in_channels"], size, size, generator=generator),
        "text": torch.randn(count, 1, tokens, config["cross_attention_dim"], generator=generator),
        "captions": torch.ones(count, dtype=torch.int64),
        "id": torch.arange(count),
    }
