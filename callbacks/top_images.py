"""Show the most influential images of the queries in TensorBoard."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from callbacks.pictures import SampleImage, image_grid, summary_writer
from datamodules.store import Store
from lightning_attr.artifacts.scores import SIGN, Scores, TopScores, load_scores
from lightning_attr.errors import expect_within
from lightning_attr.tasks.attribution import Attribution


class TopImages(Callback):
    """After ``Attribution``: each query beside its highest-scored images, for the first few queries.

    Args:
        queries: How many queries.
        top: How many images of each.
    """

    def __init__(self, queries: int = 4, top: int = 7) -> None:
        expect_within("TopImages.queries", queries, 1)
        expect_within("TopImages.top", top, 1)
        self.queries = queries
        self.top = top

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw a figure per query; other tasks have none."""
        writer = summary_writer(trainer)
        if writer is None or not isinstance(pl_module, Attribution):
            return
        scores, queries, store = load_scores(pl_module.scores_path), pl_module.query_store, pl_module.store
        for query_id in scores.query_id[: self.queries].tolist():
            images = [_query_image(queries, query_id), *_top_images(scores, store, query_id, self.top)]
            figure = image_grid(images, f"Query {query_id}: the most influential by {scores.method}\n{SIGN}")
            writer.add_figure(f"attribution/{query_id}", figure, global_step=0)


def _query_image(queries: Store, query_id: int) -> SampleImage:
    position = int(queries.positions([query_id])[0])
    return SampleImage(queries.thumb(position), f"query {query_id}\n{queries.meta(position).title}")


def _top_images(scores: Scores | TopScores, store: Store, query_id: int, top: int) -> list[SampleImage]:
    ranked = scores.ranked(query_id, min(top, scores.depth))
    positions = store.positions([sample for sample, _ in ranked])
    return [
        SampleImage(store.thumb(int(position)), f"{value:+.2e}\n{store.meta(int(position)).title}")
        for position, (_, value) in zip(positions, ranked, strict=True)
    ]
