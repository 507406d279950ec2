"""Show the most influential images of a query by several methods in TensorBoard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from callbacks.pictures import SampleImage, image_rows, summary_writer
from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.artifacts.score_table import ScoreFile, ScoreTable
from lightning_attr.artifacts.scores import SIGN, load_scores
from lightning_attr.errors import expect_within
from lightning_attr.tasks.evaluation import Evaluation

Tops = dict[int, list[tuple[int, float]]]
"""Ids and scores of the highest-scored samples, best first, by query id."""


class SideBySide(Callback):
    """After ``Evaluation``: a figure per query with a row of images for each method whose scores are evaluated.

    Args:
        store: The samples that were scored.
        queries: The query store.
        first: For how many queries.
        top: How many images of each method.
    """

    def __init__(self, store: InputPath, queries: InputPath, first: int = 4, top: int = 8) -> None:
        expect_within("SideBySide.first", first, 1)
        expect_within("SideBySide.top", top, 1)
        self.store = store
        self.queries = queries
        self.first = first
        self.top = top

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw a figure per query that two methods or more know; other tasks have none."""
        writer = summary_writer(trainer)
        if writer is None or not isinstance(pl_module, Evaluation):
            return
        store, queries = Store(self.store), Store(self.queries)
        methods = read_tops(pl_module.scores, store, queries, self.top)
        known = Counter(query for tops in methods.values() for query in tops)
        for query in sorted(query for query, count in known.items() if count > 1)[: self.first]:
            rows = {method: tops[query] for method, tops in methods.items() if query in tops}
            shared = Counter(sample for top in rows.values() for sample, _ in top)
            (position,) = queries.positions([query])
            figure = image_rows(
                {method: [_image(store, *each, shared[each[0]]) for each in top] for method, top in rows.items()},
                SampleImage(queries.thumb(int(position)), f"Query {query}: {queries.meta(int(position)).caption}"),
            )
            figure.supxlabel(SIGN, fontsize=7)
            writer.add_figure(f"side_by_side/{query}", figure, global_step=0)


def read_tops(paths: Sequence[str], store: Store, queries: Store, k: int) -> dict[str, Tops]:
    """Read what scores files rank highest, by the labels of a :class:`ScoreTable`.

    Raises:
        UserError: A file is damaged, or was made from other stores: its ids mean other images.
    """
    files = [ScoreFile(path, load_scores(path)) for path in paths]
    for path, scores in files:
        for role, opened in (("store", store), ("queries", queries)):
            check_made_from(path, scores.settings, role, opened.digest, opened.path)
    return {label: _tops(group, k) for label, group in ScoreTable(files)}


def _tops(files: Sequence[ScoreFile], k: int) -> Tops:
    """Return what the files rank highest; of a query in several of them, the first."""
    tops: Tops = {}
    for _, scores in files:
        for query in scores.query_id.tolist():
            tops.setdefault(query, scores.ranked(query, min(k, scores.depth)))
    return tops


def _image(store: Store, sample: int, score: float, methods: int) -> SampleImage:
    (position,) = store.positions([sample])
    return SampleImage(store.thumb(int(position)), f"{score:+.2e}", mark=str(methods) if methods > 1 else "")
