"""Score every sample of a store for many queries in one ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from datamodules import LatentDataModule
from datamodules.store import Store
from lightning_attr.artifacts.chunks import Passes
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.scores import Scores, TopScores, load_scores, merge_top
from lightning_attr.errors import UserError
from lightning_attr.methods import Method
from lightning_attr.methods.attribute import check_stores, chosen_queries, score_settings, scored
from lightning_attr.methods.base import Context
from lightning_attr.methods.ensemble import Ensemble
from lightning_attr.models import load


class Attribution(pl.LightningModule):
    """One pass of a method over the store. Writes ``scores.safetensors``.

    What is measured of the samples is kept in ``chunks/`` until the scores are there: a stopped run goes on with the
    first chunk that is missing, and ends with the same bits. Ranks share the chunks.

    Where ``data`` leaves samples out, a method that looks at samples together does so over those that are scored: the
    regression of TRAK, D-TRAK and Journey-TRAK, the standardisation of ``Combined``. The settings of the scores tell
    which samples there were.

    Args:
        method: The attribution method.
        queries: The query store.
        checkpoints: The models that made the queries, for methods that look at one; scores are the mean over them.
        query_ids: Ids of the queries to score for; None is all.
        topk: Keep so many of the highest-scored samples of each query only, so that memory does not grow with the
            store; None keeps all.
    """

    makes = ("scores.safetensors",)

    def __init__(
        self,
        method: Method,
        queries: InputPath,
        checkpoints: list[InputPath] = [],  # noqa: B006 (never changed; jsonargparse shows it in the help)
        query_ids: list[int] | None = None,
        topk: int | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.queries = queries
        self.checkpoints = checkpoints
        self.query_ids = query_ids
        self.topk = topk

    def setup(self, stage: str) -> None:
        """Read queries and models, check that all fits together, and find out what is still to be measured."""
        # Autograd cannot work on tensors that were made in inference mode, and many methods need gradients.
        self.trainer.predict_loop.inference_mode = False
        data = self._data
        self.store, self.query_store = Store(data.store), Store(self.queries)
        self._query_id = chosen_queries(self.query_store, self.query_ids)
        self._check(data)
        models = [load(checkpoint) for checkpoint in self.checkpoints]
        check_stores(self.query_store, self.store, models)
        self._ensemble = Ensemble(self.method, [model.to(self.trainer.strategy.root_device) for model in models])
        self._settings = score_settings(
            self.method, self.query_store, self.store, data.positions, models, self.trainer.precision
        )
        self._chunks = Passes(
            self.run / "chunks", self._ensemble.passes, self._chunk_settings(data), data.positions, data.batch_size,
            self.trainer.strategy.root_device,
        )  # fmt: skip
        self._finished = self._is_finished()
        share = self.trainer.global_rank, self.trainer.world_size
        self._pending = [] if self._finished else self._chunks.pending(*share)
        self._rows: list[Tensor] = []
        batches = [batch for index, chunk in self._pending for batch in self._chunks.passes[index].batches(chunk)]
        # Lightning calls no hook of a rank that has no batch, but the other ranks wait for it.
        data.predict_batches = batches or [np.empty(0, np.int64)]

    @property
    def run(self) -> Path:
        """Return the folder of this run."""
        return Path(self.trainer.default_root_dir)

    @property
    def scores_path(self) -> Path:
        """Return the file that this run writes."""
        return self.run / "scores.safetensors"

    def on_predict_start(self) -> None:
        """Prepare the method for the queries."""
        if not self._finished:
            self._ensemble.prepare(Context.of(self.query_store, self._query_id, self.store, self.device))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Measure a batch; the last one of a chunk writes it."""
        if not self._pending:
            return
        index, chunk = self._pending[0]
        self._ensemble.enter(index)
        self._rows.append(self._ensemble.measure(batch))
        if sum(len(rows) for rows in self._rows) == len(self._chunks.positions[chunk]):
            self._chunks.passes[index].write(chunk, torch.cat(self._rows))
            self._rows = []
            del self._pending[0]

    def on_predict_epoch_end(self) -> None:
        """Write ``scores.safetensors``, of what all ranks measured."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            if not self._finished:
                self._scores().save(self.scores_path)
            self._chunks.delete()

    def _scores(self) -> Scores | TopScores:
        query_id, name = torch.tensor(self._query_id), self.method.name
        chunks = scored(self._ensemble, self._chunks, self.store, self._query_id)
        if self.topk is None:
            scores = torch.cat([scores for _, scores in chunks], dim=1)
            ids = torch.from_numpy(self.store.ids[self._data.positions])
            return Scores(scores, query_id, ids, name, self._settings)
        index, value = torch.empty(len(query_id), 0, dtype=torch.int64), torch.empty(len(query_id), 0)
        for ids, scores in chunks:
            index, value = merge_top(index, value, ids, scores, self.topk)
        return TopScores(index, value, query_id, name, self._settings)

    @property
    def _data(self) -> LatentDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LatentDataModule):
            raise UserError(f"data: found {type(data).__name__}, expected LatentDataModule")
        return data

    def _check(self, data: LatentDataModule) -> None:
        if self.topk is not None and not 1 <= self.topk <= len(data.positions):
            raise UserError(
                f"model.topk: found {self.topk}, expected 1 to {len(data.positions)}, the number of samples"
            )

    def _chunk_settings(self, data: LatentDataModule) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "settings": self._settings,
            "query_id": self._query_id,
            "batch_size": data.batch_size,
        }

    def _is_finished(self) -> bool:
        """Return whether the scores are there, of a run that was stopped after it had written them."""
        if not self.scores_path.exists():
            return False
        scores = load_scores(self.scores_path)
        form = Scores if self.topk is None else TopScores
        same = (
            scores.settings == self._chunks.passes[0].settings["settings"]
            and scores.query_id.tolist() == self._query_id
        )
        return same and isinstance(scores, form) and scores.method == self.method.name
