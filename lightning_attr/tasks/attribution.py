"""Score every sample of a store for many queries in one ``predict``."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from datamodules import LatentDataModule
from datamodules.errors import UserError
from datamodules.scores import Scores
from datamodules.store import Store
from lightning_attr.artifacts import file_digest
from lightning_attr.methods import Method
from lightning_attr.ranks import gather


class Attribution(pl.LightningModule):
    """One pass of a method over the store. Writes ``scores.safetensors``.

    Args:
        method: The attribution method.
        queries: The query store.
    """

    def __init__(self, method: Method, queries: str) -> None:
        super().__init__()
        self.method = method
        self.queries = queries
        self._scores: dict[int, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Read the queries, and check that they are like the samples."""
        queries = Store(self.queries)
        store = Store(self._data.store)
        for field in ("latent", "text"):
            found, expected = queries.schema.fields[field].shape[1:], store.schema.fields[field].shape[1:]
            if found != expected:
                raise UserError(
                    f"queries {self.queries}: found {field} {found}, expected {expected} as {store.path} has it"
                )
        positions = queries.positions(queries.ids)
        self._queries = {
            "id": torch.tensor(queries.ids),
            "latent": torch.from_numpy(queries.read("latent", positions)),
            "text": torch.from_numpy(queries.read("text", positions)),
        }

    @property
    def _data(self) -> LatentDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LatentDataModule):
            raise UserError(f"data: found {type(data).__name__}, expected LatentDataModule")
        return data

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score a batch; rows are kept by sample id."""
        queries = {name: value.to(self.device) for name, value in self._queries.items()}
        scores = self.method.score(queries, batch).cpu().float()
        self._scores.update(zip(batch["id"].tolist(), scores.T, strict=True))

    def on_predict_end(self) -> None:
        """Write ``scores.safetensors``, of what all ranks scored."""
        for scored in gather(self.trainer, self._scores):
            self._scores.update(scored)
        if self.trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        ids = sorted(self._scores)
        digests = {"store": file_digest(self._data.store), "queries": file_digest(self.queries)}
        scores = Scores(
            scores=torch.stack([self._scores[sample] for sample in ids], dim=1),
            query_id=self._queries["id"],
            sample_id=torch.tensor(ids),
            method=self.method.name,
            settings={**self.method.settings(), "digests": digests},
        )
        scores.save(Path(self.trainer.default_root_dir) / "scores.safetensors")
