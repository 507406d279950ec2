"""Tune a feature to attribution, on customised models whose exemplars are known.

Shapes: B queries, Q queries of a model, N samples of a gallery, M models, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules.loading import LatentLoader
from lightning_attr.abc.compared import Found, compared, sentences
from lightning_attr.abc.contrasts import Contrasts, known
from lightning_attr.abc.set import AbcSet, CustomModel
from lightning_attr.artifacts.inputs import InputPath, OutputPath
from lightning_attr.artifacts.records import write_record
from lightning_attr.console import summary
from lightning_attr.encoders import encoders_digest
from lightning_attr.errors import UserError, expect_within
from lightning_attr.features import WORDS, Feature, largest_cosines
from lightning_attr.features.kept import kept_rows
from lightning_attr.features.tuned import Mappers, info_nce, save_tuned
from lightning_attr.ground_truth.metrics.functional import average_precision, recall_at_k
from lightning_attr.tasks.analysis import require_one_rank


class TunedFeatures(pl.LightningModule):
    """Two linear maps over a frozen feature, tuned so that an image is near the exemplars of the model that made it.

    The loss contrasts the exemplars with distractors and the other exemplars of the batch (InfoNCE). After every
    validation the maps are kept where they rank better than before, the first time compared with the feature as it is;
    after ``patience`` validations without, training ends. Writes the kept ones to ``features.safetensors``, and
    ``comparison.json``: what they find on the test split, beside the feature as it is.

    The features are computed once and kept.

    Args:
        abc: The folder of an AbC set with the splits train and validation.
        feature: ``latent``, ``text``, or a class of ``lightning_attr.features``.
        temperature: What cosines are divided by in the loss.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW; it pulls the maps to the identity.
        batch_size: Queries in a batch.
        distractors: Distractors in a batch.
        patience: How many validations without a better one training goes on for.
        seed: Of the order and of the distractors.
        cache: Where the features are kept, so that runs with other settings find them; None is the run's folder.
    """

    makes = ("features.safetensors", "comparison.json")

    def __init__(
        self,
        abc: InputPath,
        feature: Literal["latent", "text"] | Feature = "latent",
        temperature: float = 0.2,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        batch_size: int = 64,
        distractors: int = 1024,
        patience: int = 5,
        seed: int = 0,
        cache: OutputPath | None = None,
    ) -> None:
        super().__init__()
        expect_within("model.temperature", temperature, 1e-4)
        expect_within("model.learning_rate", learning_rate, 0)
        expect_within("model.weight_decay", weight_decay, 0)
        expect_within("model.batch_size", batch_size, 1)
        expect_within("model.distractors", distractors, 1)
        expect_within("model.patience", patience, 1)
        expect_within("model.seed", seed, 0, 2**64 - 1)
        self.abc_path = abc
        self.feature: Feature = WORDS[feature]() if isinstance(feature, str) else feature
        self.temperature = temperature
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.distractors = distractors
        self.patience = patience
        self.seed = seed
        self.cache = cache
        self.best_score: Tensor
        self.stale: Tensor
        self.register_buffer("best_score", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("stale", torch.zeros((), dtype=torch.int64))

    @property
    def run(self) -> Path:
        """Return the folder of this run."""
        return Path(self.trainer.default_root_dir)

    def setup(self, stage: str) -> None:
        """Read the set, compute the features that are not there yet, and make the maps."""
        require_one_rank(self)
        self.abc = AbcSet.load(self.abc_path)
        self.models = {split: self.abc.of_split(split) for split in ("train", "validation")}
        folder, device = Path(self.cache or self.run / "features"), self.trainer.strategy.root_device
        self._samples = kept_rows(self.feature, self.abc.gallery, folder, device).to(device)
        self._queries = kept_rows(self.feature, self.abc.queries, folder, device).values[:, 0].to(device)
        self.mappers = Mappers(self._queries.shape[1])
        self.best = Mappers(self._queries.shape[1]).requires_grad_(False)

    def train_dataloader(self) -> LatentLoader:
        """Return the queries of the training split, with what they are compared with."""
        return Contrasts(self.abc, self.models["train"], self.distractors, self.seed).loader(self.batch_size)

    def val_dataloader(self) -> Sequence[int]:
        """Return the models of the validation split."""
        return range(len(self.models["validation"]))

    def on_train_start(self) -> None:
        """Measure the feature as it is, where nothing has been measured; end at once where training was to end."""
        if math.isinf(float(self.best_score)):
            found = self.found(self.mappers, self.models["validation"])
            self.best_score.copy_(found.mean_average_precision.mean())
            if self.logger is not None:
                values = {f"val/{name}": float(value.mean()) for name, value in found._asdict().items()}
                self.logger.log_metrics(values, step=0)
        self._end_if_stale()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the contrastive loss of a batch."""
        samples = batch["sample"]
        query_BF = self.mappers.query(self._queries[batch["query"]])
        sample_NRF = self.mappers.sample(self._samples.values[samples])
        cosine_BN = largest_cosines(query_BF, sample_NRF, self._samples.counts[samples]).T
        loss = info_nce(cosine_BN, batch["positive"], self.temperature)
        if not torch.isfinite(loss):
            raise UserError(f"train/loss: found {loss.item()} at step {self.global_step}, expected a finite loss")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(query_BF))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Map the gallery once."""
        self._mapped = self.mappers.sample(self._samples.values)
        self._found: list[tuple[float, float]] = []

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Rank the gallery for the queries of a model."""
        self._found.append(self._of_model(self.mappers, self._mapped, self.models["validation"][batch_idx]))

    def on_validation_epoch_end(self) -> None:
        """Log means over models, and keep the maps if they are better than those before."""
        found = _columns(self._found)
        for name, value in found._asdict().items():
            self.log(f"val/{name}", value.mean(), prog_bar=True)
        better = bool(found.mean_average_precision.mean() > self.best_score)
        if better:
            self.best_score.copy_(found.mean_average_precision.mean())
            self.best.load_state_dict(self.mappers.state_dict())
        self.stale.copy_(torch.tensor(0) if better else self.stale + 1)
        self._end_if_stale()

    def _end_if_stale(self) -> None:
        if int(self.stale) >= self.patience:
            self.trainer.should_stop = True

    @torch.no_grad()
    def found(self, mappers: Mappers, models: Sequence[CustomModel]) -> Found:
        """Return how well the exemplars of some models are found, each among the distractors and its own."""
        mapped = mappers.sample(self._samples.values)
        return _columns([self._of_model(mappers, mapped, model) for model in models])

    def _of_model(self, mappers: Mappers, mapped_NRF: Tensor, model: CustomModel) -> tuple[float, float]:
        positions, exemplar_N = (each.to(mapped_NRF.device) for each in known(self.abc, model))
        query = torch.from_numpy(self.abc.queries.positions(model.query_ids)).to(mapped_NRF.device)
        query_QF = mappers.query(self._queries[query])
        cosine_QN = largest_cosines(query_QF, mapped_NRF[positions], self._samples.counts[positions]).T
        relevant_QN = exemplar_N.expand_as(cosine_QN)
        precision, recall = average_precision(cosine_QN, relevant_QN), recall_at_k(cosine_QN, relevant_QN, 10)
        return float(precision.mean()), float(recall.mean())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW over the maps."""
        return torch.optim.AdamW(self.mappers.parameters(), self.learning_rate, weight_decay=self.weight_decay)

    def on_fit_end(self) -> None:
        """Write the maps that were best, and compare them with the feature as it is on the test split."""
        self.to(self.trainer.strategy.root_device)
        save_tuned(self.run / "features.safetensors", self.best, self.feature, self.settings())
        if any(model.split == "test" for model in self.abc.models):
            models = self.abc.of_split("test")
            plain = Mappers(self._queries.shape[1]).to(self.best_score.device)
            metrics = compared(self.found(plain, models), self.found(self.best, models))
            queries = sum(len(model.query_ids) for model in models)
            about = {"split": "test", "models": len(models), "queries": queries, "feature": self.feature.name}
            write_record(self.run / "comparison.json", {**about, "metrics": metrics})
            summary(
                f"{self.feature.name} on the test split, {len(models)} models, {queries} queries", sentences(metrics)
            )

    def settings(self) -> dict[str, Any]:
        """Return what the maps depend on, besides the feature."""
        digests = {"gallery": self.abc.gallery.digest, "queries": self.abc.queries.digest}
        encoders = encoders_digest(self.abc.gallery)
        return {
            "temperature": self.temperature,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "distractors": self.distractors,
            "patience": self.patience,
            "seed": self.seed,
            "steps": self.global_step,
            "precision": self.trainer.precision,
            "validation": {"mean_average_precision": float(self.best_score)},
            "digests": digests if encoders is None else {**digests, "encoders": encoders},
        }


def _columns(rows: Sequence[tuple[float, float]]) -> Found:
    return Found(*torch.tensor(rows, dtype=torch.float64).unbind(1))
