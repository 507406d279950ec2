"""Show the most influential images of a query by several methods in TensorBoard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from callbacks.pictures import SampleImage, image_rows, summary_writer
from datamodules.store import Store
from lightning_attr.artifacts.scores import SIGN, Scores, TopScores, load_scores
from lightning_attr.errors import UserError
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

    def __init__(self, store: str, queries: str, first: int = 4, top: int = 8) -> None:
        for name, value in (("first", first), ("top", top)):
            if value < 1:
                raise UserError(f"SideBySide.{name}: found {value}, expected at least 1")
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
                SampleImage(queries.thumb(int(position)), f"Query {query}: {queries.meta(int(position)).captions[0]}"),
            )
            figure.supxlabel(SIGN, fontsize=7)
            writer.add_figure(f"side_by_side/{query}", figure, global_step=0)


def read_tops(paths: Sequence[str], store: Store, queries: Store, k: int) -> dict[str, Tops]:
    """Read what scores files rank highest, by the name of their method; where several are of one method, with the file.

    Files of the same method and settings, such as those of single queries, count as one.

    Raises:
        UserError: A file is damaged, or was made from other stores: its ids mean other images.
    """
    groups: dict[str, tuple[str, str, Tops]] = {}
    for path in paths:
        scores = load_scores(path)
        _check_digests(path, scores, store, queries)
        key = json.dumps([scores.method, scores.settings], sort_keys=True)
        tops = groups.setdefault(key, (scores.method, path, {}))[2]
        for query in scores.query_id.tolist():
            tops.setdefault(query, scores.ranked(query, min(k, scores.depth)))
    several = Counter(method for method, _, _ in groups.values())
    return {method if several[method] == 1 else f"{method} ({path})": tops for method, path, tops in groups.values()}


def _check_digests(path: str, scores: Scores | TopScores, store: Store, queries: Store) -> None:
    digests = scores.settings.get("digests", {})
    for role, opened in (("store", store), ("queries", queries)):
        found = digests.get(role, opened.digest)
        if found != opened.digest:
            raise UserError(
                f"{path}: found digest {found} of its {role}, expected {opened.digest} as {opened.path} has it"
            )


def _image(store: Store, sample: int, score: float, methods: int) -> SampleImage:
    (position,) = store.positions([sample])
    return SampleImage(store.thumb(int(position)), f"{score:+.2e}", mark=str(methods) if methods > 1 else "")
