"""Retrain without some samples, such as the top K of a query, and see what became of the query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules import LatentDataModule
from datamodules.errors import UserError
from datamodules.store import Store
from lightning_attr.artifacts import file_digest, save_tensors
from lightning_attr.denoisers import TrainedModel, load_trained
from lightning_attr.diffusion import generate
from lightning_attr.encoders import store_image_encoder
from lightning_attr.methods.loss_deltas import sample_losses
from lightning_attr.metrics.functional import feature_similarity, generation_deviation, loss_change
from lightning_attr.noise import Draws
from lightning_attr.tasks.latent_diffusion import LatentDiffusion
from lightning_attr.tasks.sampler import regeneration_settings


class LeaveKOut(LatentDiffusion):
    """Training from scratch without some samples, then Delta L and Delta G of the queries.

    ``data.exclude`` names the samples to leave out, or ``data.subset`` those to keep; with neither, the model differs
    from the original by its seeds alone, which shows how large chance is.

    The training settings must be those of the original model; give its config first and this one's on top. Writes
    ``leave_k_out.safetensors``: the queries' losses and regenerated latents under both models.

    Args:
        original: The checkpoint of the model trained on everything.
        queries: The query store.
        method: What chose the removed samples, such as ``unlearning``, ``random`` or ``subset``.
        evaluate: The ids of the queries to look at; None is all of them.
        evaluation: The draws of Delta L; 200 of 1000 timesteps is every 5th (AbU, section 5).
        training: The arguments of ``LatentDiffusion``.
    """

    def __init__(
        self,
        original: str,
        queries: str,
        method: str = "top",
        evaluate: list[int] | None = None,
        evaluation: Draws = Draws(timesteps=200),
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.original = original
        self.queries = queries
        self.method = method
        self.evaluate = evaluate
        self.evaluation = evaluation

    def setup(self, stage: str) -> None:
        """Check the original and the queries before hours of training, not after."""
        super().setup(stage)
        queries = Store(self.queries)
        queries.positions(self._query_ids(queries))
        configs = load_trained(self.original).configs
        if configs != self.configs:
            raise UserError(
                f"model.original {self.original}: found {configs}, expected {self.configs} as this model has it"
            )

    def _query_ids(self, queries: Store) -> list[int]:
        return self.evaluate if self.evaluate is not None else [int(query) for query in queries.ids]

    def on_fit_end(self) -> None:
        """Measure both models on the queries and write ``leave_k_out.safetensors``."""
        root = Path(self.trainer.default_root_dir)
        device = self.trainer.strategy.root_device
        queries = Store(self.queries)
        ids = self._query_ids(queries)
        # The checkpoint is what other stages read, with the averaged weights where there is an average.
        retrained = self._measure(load_trained(root / "checkpoints" / "last.ckpt"), queries, ids, device)
        original = self._measure(load_trained(self.original), queries, ids, device)
        tensors = {"query_id": torch.tensor(ids), "removed_id": torch.tensor(self._removed(), dtype=torch.int64)}
        for name in original:
            tensors[f"original_{name}"], tensors[f"retrained_{name}"] = original[name], retrained[name]
        save_tensors(root / "leave_k_out.safetensors", tensors, self._settings())
        self._log(original, retrained)

    def _measure(self, model: TrainedModel, queries: Store, ids: list[int], device: torch.device) -> dict[str, Tensor]:
        """Return the queries' losses [Q, D] and regenerated latents [Q, C, H, W] and images [Q, H, W, 3]."""
        denoiser = model.denoiser.to(device)
        positions = queries.positions(ids)
        text = torch.from_numpy(queries.read("text", positions)).float().to(device)
        batch = {
            "latent": torch.from_numpy(queries.read("latent", positions)).float().to(device),
            "text": text,
            "captions": torch.ones(len(ids), dtype=torch.int64, device=device),
            "id": torch.tensor(ids),
        }
        losses = sample_losses(denoiser, model.scheduler, batch, self.evaluation)[:, 0]
        metas = [queries.meta(int(position)) for position in positions]
        latents = regenerate(denoiser, model, text[:, 0], metas)
        images = store_image_encoder(queries).decode(latents.cpu())
        return {"losses": losses.cpu(), "latent": latents.cpu(), "image": images}

    def _removed(self) -> list[int]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, LatentDataModule)
        return data.left_out_ids

    def _settings(self) -> dict[str, Any]:
        files = {"original": self.original, "queries": self.queries, "store": self.store.path}
        return {
            "method": self.method,
            "k": len(self._removed()),
            "seed": self.seed,
            "draws": vars(self.evaluation),
            "digests": {name: file_digest(path) for name, path in files.items()},
        }

    def _log(self, original: dict[str, Tensor], retrained: dict[str, Tensor]) -> None:
        values = {
            "leave_k_out/loss_change": loss_change(original["losses"], retrained["losses"]).mean(),
            "leave_k_out/generation_deviation": generation_deviation(original["latent"], retrained["latent"]).mean(),
            "leave_k_out/latent_similarity": feature_similarity(original["latent"], retrained["latent"]).mean(),
        }
        if self.logger is not None:
            self.logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.global_step)


def regenerate(denoiser: nn.Module, model: TrainedModel, text: Tensor, metas: list[Any]) -> Tensor:
    """Sample queries again from their own seeds, [Q, C, H, W]. All of them share one set of sampling settings."""
    settings = regeneration_settings(metas[0])
    seeds = [int(meta.attributes["seed"]) for meta in metas]
    latents, _ = generate(denoiser, model.scheduler, text, model.null_text, seeds, model.latent_shape, **settings)
    return latents
