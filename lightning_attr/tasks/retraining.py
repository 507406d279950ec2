"""Retrain without some samples, as a query's top K, on a subset or by another seed; see what it does to queries.

Shapes: Q queries, D draws, C x H x W a latent; of an image, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules import Exclude, LatentDataModule
from datamodules.grouping import grouping_name
from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.digests import file_digest
from lightning_attr.encoders import store_image_encoder
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics.functional import feature_similarity, generation_deviation, loss_change
from lightning_attr.losses import sample_losses
from lightning_attr.models import Model, load
from lightning_attr.models.finetune import form
from lightning_attr.noise import Draws
from lightning_attr.sampling import known_sampling_of
from lightning_attr.tasks.latent_diffusion import LatentDiffusion


class Retraining(LatentDiffusion):
    """Training from scratch without some samples, then Delta L and Delta G of the queries.

    ``data.exclude`` names the samples to leave out, or ``data.subset`` those to keep; with neither, the model differs
    from the original by its seeds alone, which shows how large chance is.

    The training settings must be those of the original model; give its config first and this one's on top. Writes
    ``retraining.safetensors``: the queries' losses and regenerated latents under both models. Where queries from files
    do not say their seeds, steps and guidance, it has the losses alone.

    Args:
        original: The checkpoint of the model trained on everything.
        queries: The query store.
        method: What chose the removed samples, such as ``unlearning``, ``random`` or ``subset``.
        evaluate: The ids of the queries to look at; None is all of them.
        evaluation: The draws of Delta L; 200 of 1000 timesteps is every 5th (AbU, section 5).
        regenerate: Whether the queries are made again as well; a sweep does without where the losses alone are asked
            for.
        training: The arguments of ``LatentDiffusion``.
    """

    makes = (*LatentDiffusion.makes, "retraining.safetensors")

    def __init__(
        self,
        original: InputPath,
        queries: InputPath,
        method: str = "top",
        evaluate: list[int] | None = None,
        evaluation: Draws = Draws(timesteps=200),
        regenerate: bool = True,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.original = original
        self.queries = queries
        self.method = method
        self.evaluate = evaluate
        self.evaluation = evaluation
        self.regenerate = regenerate

    def setup(self, stage: str) -> None:
        """Check the original and the queries before hours of training, not after."""
        super().setup(stage)
        self.check(self.store)

    def check(self, store: Store) -> None:
        """Check that the queries are there, and that the original is a model like this one, trained on the same store.

        Raises:
            UserError: They are not.
        """
        queries = Store(self.queries)
        self.model.accepts(queries)
        known_sampling_of(queries, self._query_ids(queries))
        original = load(self.original)
        original.was_trained_on(store)
        made_from = {"digests": original.made_from}
        check_made_from(f"model.original {self.original}", made_from, "base", self.model.digest, "model.base")
        found, expected = dict(original.configs), dict(self.configs)
        if original.denoiser.adapter and "base" not in found:  # its adapter was trained elsewhere: no recipe is known
            expected.pop("base", None)
            found, expected = found | form(original), expected | form(self.model)
        if found != expected:
            name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
            raise UserError(
                f"model.original {self.original}: {name}: found {found.get(name)}, expected {expected.get(name)} as "
                "this model has it"
            )

    def _query_ids(self, queries: Store) -> list[int]:
        return self.evaluate if self.evaluate is not None else [int(query) for query in queries.ids]

    def on_fit_end(self) -> None:
        """Measure both models on the queries and write ``retraining.safetensors``."""
        super().on_fit_end()
        if not self.trainer.is_global_zero:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, LatentDataModule)
        device = self.trainer.strategy.root_device
        values = self.record(Path(self.trainer.default_root_dir), data, self.measured(self.original, device), device)
        if self.logger is not None:
            self.logger.log_metrics(values, step=self.global_step)

    def record(
        self, folder: Path, data: LatentDataModule, original: Mapping[str, Tensor], device: torch.device
    ) -> dict[str, float]:
        """Measure the retrained model of a run, and write ``retraining.safetensors``.

        Needs neither a trainer nor this module's own weights, so that a group can record each of its members.

        Args:
            folder: The run's folder, with the retrained model's checkpoint.
            data: What it was trained on.
            original: What the original gave.
            device: Where to measure.

        Returns:
            Means over the queries, by their names in TensorBoard.
        """
        # The checkpoint is what other stages read, with the averaged weights where there is an average.
        retrained = self.measured(folder / "checkpoints" / "last.ckpt", device)
        removed = torch.tensor(data.left_out_ids, dtype=torch.int64)
        tensors = {"query_id": torch.tensor(self._query_ids(Store(self.queries))), "removed_id": removed}
        for name in original:
            tensors[f"original_{name}"], tensors[f"retrained_{name}"] = original[name], retrained[name]
        save_tensors(folder / "retraining.safetensors", "retraining", tensors, self._settings(data))
        return summary(original, retrained)

    def measured(self, checkpoint: str | Path, device: torch.device) -> dict[str, Tensor]:
        """Measure a model on the queries, see :func:`measure`."""
        queries = Store(self.queries)
        ids = self._query_ids(queries)
        return measure(load(checkpoint), queries, ids, self.evaluation, device, self.regenerate)

    def _settings(self, data: LatentDataModule) -> dict[str, Any]:
        files = {"original": self.original, "queries": self.queries, "store": data.store}
        return {
            "method": self.method,
            "k": len(data.left_out_ids),
            "top_of": None if data.exclude is None else data.exclude.query,
            **_without_groups(data.exclude),
            "seed": self.seed,
            "draws": vars(self.evaluation),
            "digests": {name: file_digest(path) for name, path in files.items()},
        }


def _without_groups(exclude: Exclude | None) -> dict[str, Any]:
    """Return which groups were left out, where they were named."""
    if exclude is None or exclude.grouping is None:
        return {}
    return {"grouping": grouping_name(exclude.grouping), "groups": exclude.group_names}


def measure(
    model: Model, queries: Store, ids: list[int], draws: Draws, device: torch.device, regenerate: bool = True
) -> dict[str, Tensor]:
    """Return the queries' ``losses`` [Q, D], and ``latent`` [Q, C, H, W] and ``image`` [Q, H, W, 3] generated again.

    Of queries from files that do not say how they were sampled it is the losses alone, and where not asked for more.
    """
    model = model.to(device)
    positions = queries.positions(ids)
    batch = {name: value.to(device) for name, value in whole_samples(queries, positions).items()}
    losses = sample_losses(model, batch, draws, views=1, captions=1)[:, 0]
    if not regenerate or (sampling := known_sampling_of(queries, ids)) is None:
        return {"losses": losses.cpu()}
    seeds, steps, guidance = sampling
    conditions = {name: value[:, 0] for name, value in model.conditions_of(batch).items()}
    size = queries.schema.fields["latent"].shape[-2:]
    latents, _ = model.generate(conditions, seeds, size=size, steps=steps, guidance=guidance)
    images = store_image_encoder(queries).decode(latents.cpu())
    return {"losses": losses.cpu(), "latent": latents.cpu(), "image": images}


def summary(original: Mapping[str, Tensor], retrained: Mapping[str, Tensor]) -> dict[str, float]:
    """Return what became of the queries, as means over them."""
    values = {"loss_change": loss_change(original["losses"], retrained["losses"])}
    if "latent" in original:
        values["generation_deviation"] = generation_deviation(original["latent"], retrained["latent"])
        values["latent_similarity"] = feature_similarity(original["latent"], retrained["latent"])
    return {f"retraining/{name}": float(value.mean()) for name, value in values.items()}
