"""What the tasks share that change a model's weights to unlearn a query.

Shapes: D draws, C x H x W a latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.errors import UserError
from lightning_attr.models import Inputs
from lightning_attr.tasks.analysis import AnalysisTask


class ChangedWeights(AnalysisTask):
    """A task that changes selected weights for one query; its checkpoints hold these alone of the denoiser.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``.
        queries: A query store.
        query: The id of the query to unlearn.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices``, ``all``, or a regular
            expression; None is the adapter's where there is one, else ``otherwise``.
        otherwise: The weights of a model without an adapter, where none are said.
    """

    makes = ("weights.safetensors", "scores.safetensors")  # the scores with a LossDeltaRecorder

    def __init__(
        self, checkpoint: str, queries: str, query: int, weights: str | None, otherwise: str = "cross_kv"
    ) -> None:
        super().__init__(checkpoint)
        self.queries = queries
        self.query = query
        self.weights = self.model.chosen(weights, otherwise)
        self.selected = self.model.select(self.weights)
        for weight in self.selected.values():
            weight.requires_grad_()
        self.latent: Tensor

    def setup(self, stage: str) -> None:
        """Read the query: its latent [C, H, W] and its conditions."""
        queries = Store(self.queries)
        self.model.accepts(queries)
        query = whole_samples(queries, queries.positions([self.query]))
        self.register_buffer("latent", query["latent"][0, 0].float(), persistent=False)
        self.conditions = {name: value[0, 0] for name, value in self.model.conditions_of(query).items()}

    def query_inputs(self, timesteps: Tensor, noise: Tensor) -> Inputs:
        """Return what the model is given of the query at draws: timesteps int64 [D], noises [D, C, H, W]."""
        count, device = len(timesteps), self.latent.device
        conditions = {name: value.to(device).expand(count, *value.shape) for name, value in self.conditions.items()}
        latent = self.latent.expand(count, *self.latent.shape)
        return Inputs(latent, conditions, timesteps.to(device), noise.to(device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the changed weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["weights"] = {name: weight.detach() for name, weight in self.selected.items()}

    @torch.no_grad()
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the changed weights."""
        weights = checkpoint.get("weights", {})
        if weights.keys() != self.selected.keys():
            raise UserError(f"checkpoint of other weights: found {len(weights)}, expected those of {self.weights!r}")
        for name, value in weights.items():
            self.selected[name].copy_(value)
