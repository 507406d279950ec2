"""What the page shows of a run: every number is chosen here, the template only sets it.

Shapes: Q queries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datamodules.store import Store
from datamodules.store.records import Meta
from lightning_attr.commands.report.contents import LOSS_DELTAS, Ranking, Retrained, Run
from lightning_attr.commands.report.pictures import Credit, Picture
from lightning_attr.commands.report.scales import Axis, Histogram, Scale
from lightning_attr.errors import shortened
from lightning_attr.ground_truth.metrics.per_query import Summary, summarise

MOST = 12
LEAST = 6
BESIDE = 8
"""How many images a ranking has where rankings stand side by side."""
LONGEST = 1000
"""How many characters of a caption are shown."""
RETRIEVAL = {"top_1": "top-1", "mean_average_precision": "mAP"}
"""The columns of metrics of retrieval, beside recall@K."""


@dataclass(frozen=True)
class Card:
    """A training image in a ranking."""

    rank: int
    id: int
    score: float
    picture: Picture | None
    key: str | None
    caption: str
    credits: list[Credit]
    share: float | None = None


@dataclass(frozen=True)
class RankingView:
    """The ranking of one method for one query.

    ``unknown`` scores are NaN or infinite and have no rank. Of a ranking that is not ``whole``, the file keeps only the
    highest scores: nobody knows which are the least.
    """

    label: str
    is_loss_delta: bool
    scale: Scale
    most: list[Card]
    least: list[Card]
    histogram: Histogram | None
    known: int
    unknown: int
    whole: bool
    rest: float | None = None

    @property
    def word(self) -> str:
        """Return what its scores are."""
        return "loss delta" if self.is_loss_delta else "score"


@dataclass(frozen=True)
class Regeneration:
    """A query as one retrained model makes it; no picture where it cannot be made again."""

    label: str
    picture: Picture | None
    loss_change: float
    deviation: float


@dataclass(frozen=True)
class QueryView:
    """One synthesized image and all that is known of it.

    ``shared`` says in how many rankings a training image is among the first ``BESIDE``, where it is in several.
    """

    id: int
    prompt: str | None
    attributes: Mapping[str, Any]
    picture: Picture | None
    rankings: list[RankingView]
    shared: Mapping[int, int]
    original: Picture | None
    regenerations: list[Regeneration]
    loss_scale: Scale
    deviation_scale: Scale


def query_views(run: Run) -> Iterator[QueryView]:
    """Yield what the page shows of each query."""
    models = run.retrained
    loss_scale = Scale.of(torch.cat([model.loss_change for model in models])) if models else Scale(0, 3)
    deviation_scale = Scale.of(torch.cat([model.deviation for model in models])) if models else Scale(0, 3)
    training = Gallery(run.store)
    pictures = Gallery(run.queries)
    for query in run.query_ids:
        meta, picture = pictures.read(query)
        rankings = [_ranking(training, ranking, query) for ranking in run.rankings if query in ranking.rows]
        measured = [(model, model.query_id.index(query)) for model in models if query in model.query_id]
        yield QueryView(
            id=query,
            prompt=shortened(meta.caption, LONGEST) or None if meta else None,
            attributes=_ordered(meta.attributes) if meta else {},
            picture=picture,
            rankings=rankings,
            shared=_shared(rankings),
            original=next((_picture(model.original, row) for model, row in measured), None),
            regenerations=[_regeneration(model, row) for model, row in measured],
            loss_scale=loss_scale,
            deviation_scale=deviation_scale,
        )


def training_pictures(queries: Sequence[QueryView]) -> dict[int, Picture]:
    """Return the pictures of all training images that are shown; many rankings show the same ones."""
    cards = (card for query in queries for ranking in query.rankings for card in (*ranking.most, *ranking.least))
    return {card.id: card.picture for card in cards if card.picture is not None}


def _ordered(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Put first what a query is made again from."""
    first = {name: attributes[name] for name in ("seed", "steps", "guidance") if name in attributes}
    return {**first, **attributes}


def _regeneration(model: Retrained, row: int) -> Regeneration:
    picture = _picture(model.retrained, row)
    return Regeneration(model.label, picture, float(model.loss_change[row]), float(model.deviation[row]))


def _picture(images: Tensor | None, row: int) -> Picture | None:
    return None if images is None else Picture.of_pixels(images[row])


def _shared(rankings: Sequence[RankingView]) -> dict[int, int]:
    counts = Counter(card.id for ranking in rankings for card in ranking.most[:BESIDE])
    return {sample: count for sample, count in counts.items() if count > 1}


def _ranking(gallery: Gallery, ranking: Ranking, query: int) -> RankingView:
    row = ranking.rows[query]
    ranked = row.ranked()
    known = len(ranked.score)
    most = range(min(MOST, known))
    least = range(known - 1, max(MOST, known - LEAST) - 1, -1) if row.whole else range(0)
    cards = {
        place: gallery.card(
            place + 1,
            int(ranked.sample_id[place]),
            float(ranked.score[place]),
            None if ranked.share is None else float(ranked.share[place]),
        )
        for place in (*most, *least)
    }
    return RankingView(
        label=ranking.label,
        is_loss_delta=ranking.method == LOSS_DELTAS,
        scale=Scale.of(ranked.score),
        most=[cards[place] for place in most],
        least=[cards[place] for place in least],
        histogram=Histogram.of(ranked.score, ranked.score[:MOST]) if known else None,
        known=known,
        unknown=len(row.score) - known,
        whole=row.whole,
        rest=row.rest,
    )


class Gallery:
    """The pictures and words of a store, each read once; nothing of a store that was not found."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._read: dict[int, tuple[Meta | None, Picture | None]] = {}

    def read(self, sample: int) -> tuple[Meta | None, Picture | None]:
        """Return what the store keeps of a sample."""
        if self._store is None:
            return None, None
        if sample not in self._read:
            position = int(self._store.positions([sample])[0])
            self._read[sample] = self._store.meta(position), Picture.of_file(self._store.thumb(position))
        return self._read[sample]

    def card(self, rank: int, sample: int, score: float, share: float | None = None) -> Card:
        """Return a training image as a ranking shows it."""
        meta, picture = self.read(sample)
        credits = []
        if meta is not None and meta.licence:
            credits.append(Credit.licence(meta.licence))
        if meta is not None and meta.source:
            credits.append(Credit.source(meta.source))
        key = shortened(meta.key, LONGEST) if meta is not None and meta.key else None
        return Card(rank, sample, score, picture, key, shortened(meta.caption, LONGEST) if meta else "", credits, share)


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its standard error, and where to draw it, in per cent of the width.

    Args:
        text: Both numbers in words.
        at: The mean.
        low: The mean minus its standard error; None where there is none.
        high: The mean plus its standard error.
        points: The single queries.
    """

    text: str
    at: float
    low: float | None
    high: float | None
    points: list[float]


@dataclass(frozen=True)
class Comparison:
    """Removals compared by the change that retraining without them makes.

    Args:
        title: What is compared.
        unit: The factor that the numbers are to be multiplied by.
        rows: One per removal: label, number of queries, mean.
        zero: Where zero lies, in per cent of the width.
    """

    title: str
    unit: str
    rows: list[tuple[str, int, Interval]]
    zero: float


def comparisons(models: Sequence[Retrained]) -> list[Comparison]:
    """Compare removals by loss change and by generation deviation, averaged over queries."""
    if not models:
        return []
    titled = (("Loss change ΔL", "loss_change"), ("Generation deviation ΔG", "deviation"))
    by_label = [
        (title, {label: _per_query(models, label, what) for label in _labels(models)}) for title, what in titled
    ]
    known = [
        (title, {label: each for label, each in values.items() if not each.isnan().all()}) for title, values in by_label
    ]
    return [_comparison(title, values) for title, values in known if values]


def _labels(models: Sequence[Retrained]) -> list[str]:
    return list(dict.fromkeys(model.label for model in models))


def _per_query(models: Sequence[Retrained], label: str, what: str) -> Tensor:
    """Return a value per query, float64 [Q]. Models of one label, such as random removals, are averaged first."""
    values: dict[int, list[float]] = {}
    for model in models:
        if model.label == label:
            for query, value in zip(model.query_id, getattr(model, what).tolist(), strict=True):
                values.setdefault(query, []).append(value)
    return torch.stack([torch.tensor(of_query, dtype=torch.float64).nanmean() for of_query in values.values()])


def _comparison(title: str, values: Mapping[str, Tensor]) -> Comparison:
    means = {label: summarise(of_queries) for label, of_queries in values.items()}
    scale = Scale.of(torch.stack([summary.mean for summary in means.values()]))
    everything = [value for of_queries in values.values() for value in of_queries.tolist()]
    for summary in means.values():
        mean, error = float(summary.mean), float(summary.standard_error.nan_to_num())
        everything += [mean - error, mean + error]
    axis = Axis.around(everything)
    rows = [
        (label, int(means[label].known), _interval(means[label], of_queries, axis, scale))
        for label, of_queries in values.items()
    ]
    return Comparison(title, scale.unit, rows, axis.at(0))


def _interval(summary: Summary, values: Tensor, axis: Axis, scale: Scale) -> Interval:
    mean, error = float(summary.mean), float(summary.standard_error)
    known = math.isfinite(error)
    return Interval(
        text=f"{scale.plain(mean)} ± {scale.plain(error)}" if known else scale.plain(mean),
        at=axis.at(mean),
        low=axis.at(mean - error) if known else None,
        high=axis.at(mean + error) if known else None,
        points=[axis.at(value) for value in values.tolist() if math.isfinite(value)],
    )


@dataclass(frozen=True)
class Retrieval:
    """How well methods find the samples that are known to be relevant; the rows hold text, one per column."""

    stage: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def retrievals(metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[Retrieval]:
    """Yield recall@K, top-1 and mAP of every ``metrics.json`` that has them."""
    for stage, content in metrics.items():
        table: dict[str, dict[str, str]] = {}
        for key, summary in content.items():
            method, _, name = key.rpartition("/")
            if name in RETRIEVAL or name.startswith("recall_at_"):
                column = RETRIEVAL.get(name, f"recall@{name.removeprefix('recall_at_')}")
                table.setdefault(method, {})[column] = _mean(summary)
        if table:
            columns = sorted({column for row in table.values() for column in row}, key=_column_order)
            methods = sorted(table, key=lambda method: (method != LOSS_DELTAS, method))
            rows = [(method, [table[method].get(column, "–") for column in columns]) for method in methods]
            yield Retrieval(stage, columns, rows)


def _column_order(column: str) -> tuple[bool, int, str]:
    """Order recall by ascending K, then mAP."""
    return column == "mAP", len(column), column


def _mean(summary: Mapping[str, float]) -> str:
    mean, error = summary["mean"], summary["standard_error"]
    if not math.isfinite(mean):
        return "unknown"
    return f"{mean:.3f} ± {error:.3f}" if math.isfinite(error) else f"{mean:.3f}"
