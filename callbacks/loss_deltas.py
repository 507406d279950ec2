"""Record how much every sample of the store is forgotten when a query is unlearned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from callbacks.pictures import SampleImage, image_grid, summary_writer
from datamodules.store import Store
from lightning_attr.artifacts import tensors_digest
from lightning_attr.artifacts.inputs import OutputPath
from lightning_attr.artifacts.scores import SIGN, Scores
from lightning_attr.console import note, progress
from lightning_attr.errors import UserError
from lightning_attr.loss_sweep import LossSweep
from lightning_attr.losses import delta_scores
from lightning_attr.methods.base import expect_counts
from lightning_attr.noise import Draws
from lightning_attr.tasks.unlearning import Unlearning


class LossDeltaRecorder(Callback):
    """After ``Unlearning``: losses of all samples before and after, on the same draws, and the scores they give.

    Writes ``losses.safetensors`` and ``scores.safetensors`` into the run's folder, and to TensorBoard a histogram of
    the loss deltas and the most influential images. The losses before are the same for every query: they are kept in
    ``base`` and reused where store, checkpoint and settings agree.

    Args:
        base: File of the losses before unlearning, shared by the queries.
        draws: Where the losses are measured.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.
        over_views: How views are combined.
        batch_size: Samples in a forward pass.
        top: How many of the most influential images go to TensorBoard.
    """

    def __init__(
        self,
        base: OutputPath,
        draws: Draws = Draws(),
        captions: int | None = None,
        views: int | None = None,
        over_views: Literal["max", "mean"] = "max",
        batch_size: int = 256,
        top: int = 16,
    ) -> None:
        expect_counts("callbacks.LossDeltaRecorder", captions=captions, views=views, batch_size=batch_size, top=top)
        self.base = base
        self.draws = draws
        self.captions = captions
        self.views = views
        self.over_views: Literal["max", "mean"] = over_views
        self.batch_size = batch_size
        self.top = top

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a task that changes no weights."""
        if not isinstance(pl_module, Unlearning):
            raise UserError(f"callbacks: LossDeltaRecorder found {type(pl_module).__name__}, expected Unlearning")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sweep the store before and after, and write what came out."""
        assert isinstance(pl_module, Unlearning)
        pl_module.to(trainer.strategy.root_device)
        store = Store(pl_module.store)
        with original_weights(pl_module):
            base = LossSweep(self.base, self._settings(pl_module), len(store), self.batch_size)
            before = self._sweep(trainer, pl_module, store, base, "before")
        changed = {**self._settings(pl_module), "weights": tensors_digest(pl_module.selected)}
        own = LossSweep(pl_module.run / "losses.safetensors", changed, len(store), self.batch_size)
        after = self._sweep(trainer, pl_module, store, own, "after")
        scores = Scores(
            scores=(delta_scores(before, after, self.over_views) * torch.from_numpy(store.weights))[None],
            query_id=torch.tensor([pl_module.query]),
            sample_id=torch.tensor(store.ids),
            method="unlearning",
            settings=self._score_settings(pl_module),
        )
        if trainer.is_global_zero:
            scores.save(pl_module.run / "scores.safetensors")
            self._show(trainer, store, scores)

    def _score_settings(self, task: Unlearning) -> dict[str, Any]:
        # The query is in query_id; the rest must be the same for all queries that share a matrix of scores.
        settings = {name: value for name, value in task.settings().items() if name != "query"}
        return {**settings, "over_views": self.over_views, "sweep": vars(self.draws)}

    def _settings(self, task: Unlearning) -> dict[str, Any]:
        digests = task.digests()
        return {
            "store": digests["store"],
            "checkpoint": digests["checkpoint"],
            "draws": vars(self.draws),
            "captions": self.captions,
            "views": self.views,
        }

    def _sweep(self, trainer: pl.Trainer, task: Unlearning, store: Store, sweep: LossSweep, when: str) -> Tensor:
        # Rank 0 decides for all: another run may be making the file right now.
        if not trainer.strategy.broadcast(sweep.cached() is not None):
            self._measure(trainer, task, store, sweep, when)
        losses = sweep.cached()
        assert losses is not None
        return losses

    def _measure(self, trainer: pl.Trainer, task: Unlearning, store: Store, sweep: LossSweep, when: str) -> None:
        if sweep.differs():
            note(f"{sweep.path}: of another store, checkpoint or settings; measured anew")
        with progress("samples") as bar:
            task_id = bar.add_task(f"losses {when} unlearning", total=len(store))
            sweep.run(
                task.model, store, self.draws,
                views=self.views, captions=self.captions, device=task.device,
                shard=(trainer.global_rank, trainer.world_size),
                on_batch=lambda n: bar.advance(task_id, n * trainer.world_size),
            )  # fmt: skip
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            sweep.join()
        trainer.strategy.barrier()

    def _show(self, trainer: pl.Trainer, store: Store, scores: Scores) -> None:
        writer = summary_writer(trainer)
        if writer is None:
            return
        row = scores.scores[0]
        writer.add_histogram("unlearn/loss_deltas", row, global_step=trainer.global_step)
        order = row.argsort(descending=True, stable=True)[: self.top].tolist()
        samples = [(store.meta(position), store.thumb(position), float(row[position])) for position in order]
        images = [SampleImage(thumb, f"{delta:+.2e}\n{meta.title}") for meta, thumb, delta in samples]
        figure = image_grid(images, f"Most influential: loss delta, key and caption\n{SIGN}")
        writer.add_figure("unlearn/most_influential", figure, global_step=trainer.global_step)


@contextmanager
def original_weights(task: Unlearning) -> Iterator[None]:
    """Put the weights from before unlearning in place for a while."""
    changed = {name: weight.detach().clone() for name, weight in task.selected.items()}
    _assign(task.selected, task.original)
    try:
        yield
    finally:
        _assign(task.selected, changed)


@torch.no_grad()
def _assign(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        weights[name].copy_(value)
