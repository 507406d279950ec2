"""Packs of models that were never trained: the influence of every sample on every query is known."""

from __future__ import annotations

from itertools import product

import torch
from miniature import DENOISER
from torch import Tensor

from lightning_attr.artifacts.scores import Scores
from lightning_attr.ground_truth.pack import Model, Pack
from lightning_attr.models import build

QUERIES, SAMPLES, DRAWS = 6, 40, 5
KS = (2, 8)
DIGESTS = {"original": "o", "queries": "q", "store": "s"}


class World:
    """A query's loss falls by the influence of each sample in the training set; training seeds add noise."""

    def __init__(self, noise: float = 1.0, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.influence = self.normal(QUERIES, SAMPLES)
        self.noise = noise
        self.sample_id = torch.arange(SAMPLES) * 3 + 1
        self.query_id = torch.arange(QUERIES) * 2
        self.at_draws = self.normal(DRAWS)
        self.models: list[Model] = []
        self.masks: list[Tensor] = []
        self.losses: list[Tensor] = []

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def loss(self, mask: Tensor, noise: float) -> Tensor:
        of_query = 10 - self.influence @ mask.float() / 10 + noise * self.normal(QUERIES) / 10
        return of_query[:, None] + self.at_draws  # the mean over draws is off by a constant

    def add(self, model: Model, mask: Tensor, noise: float) -> None:
        self.models.append(model)
        self.masks.append(mask)
        self.losses.append(self.loss(mask, noise))

    def subsets(self, count: int, seeds: int = 2) -> None:
        for subset in range(count):
            mask = torch.rand(SAMPLES, generator=self.generator).argsort() < SAMPLES // 2
            for seed in range(seeds):
                name = f"subset/{subset}/seed-{seed}"
                self.add(Model(name, "subset", None, SAMPLES // 2, seed), mask, self.noise)

    def top(self, method: str, scores: Tensor, seeds: int = 1) -> None:
        for seed, (row, query), k in product(range(seeds), enumerate(self.query_id.tolist()), KS):
            mask = torch.ones(SAMPLES, dtype=torch.bool)
            mask[scores[row].topk(k).indices] = False
            self.add(Model(f"top/{method}/query-{query}/k-{k}", method, query, k, seed), mask, self.noise / 10)

    def random(self, count: int) -> None:
        for k in KS:
            for seed in range(count):
                mask = torch.rand(SAMPLES, generator=self.generator).argsort() >= k
                self.add(Model(f"random/k-{k}/{seed}", "random", None, k, 0), mask, self.noise / 10)

    def groups(self, grouping: str, members: dict[str, list[int]], seeds: int = 1) -> None:
        """Models without groups of samples, and as many without as many random ones."""
        for name, places in members.items():
            for seed in range(seeds):
                mask = torch.ones(SAMPLES, dtype=torch.bool)
                mask[places] = False
                model = Model(f"group/{grouping}/{name}", "group", None, len(places), seed, name, grouping)
                self.add(model, mask, self.noise / 10)
                mask = torch.rand(SAMPLES, generator=self.generator).argsort() >= len(places)
                self.add(Model(f"random/k-{len(places)}/{seed}", "random", None, len(places), 0), mask, self.noise / 10)

    def full(self, seeds: int) -> None:
        for seed in range(1, seeds + 1):
            everything = torch.ones(SAMPLES, dtype=torch.bool)
            self.add(Model(f"full/seed-{seed}", "full", None, 0, seed), everything, self.noise)

    def scores(self, method: str, values: Tensor, **settings: object) -> Scores:
        return Scores(values, self.query_id[: len(values)], self.sample_id, method, settings)

    def pack(self) -> Pack:
        latent = (len(self.models), QUERIES)
        return Pack(
            models=tuple(self.models),
            masks=torch.stack(self.masks),
            sample_id=self.sample_id,
            query_id=self.query_id,
            losses=torch.stack(self.losses),
            original_losses=self.loss(torch.ones(SAMPLES, dtype=torch.bool), 0),
            deviations=self.normal(*latent).abs().double(),
            similarities=self.normal(*latent).tanh().double(),
            weights=build(DENOISER, {}, 0).network.state_dict(),
            null={"text": self.normal(6, 16)},
            configs={"denoiser": DENOISER, "scheduler": {}, "latent_shape": [4, 8, 8]},
            queries=torch.arange(256, dtype=torch.uint8),
            settings={"digests": DIGESTS, "draws": {"timesteps": DRAWS}},
        )


def world(subsets: int = 40, noise: float = 1.0) -> World:
    """Everything that a sweep may retrain."""
    made = World(noise)
    made.subsets(subsets)
    made.top("truth", made.influence)
    made.top("noise", made.normal(QUERIES, SAMPLES))
    made.random(2)
    made.full(3)
    return made
