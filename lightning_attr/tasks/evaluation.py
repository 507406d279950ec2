"""Check attributions: against retrained models, a sweep's pack of them, and samples or groups known to be right.

Shapes: Q queries, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from datamodules.store import Store
from lightning_attr.artifacts.before import found
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.records import write_record
from lightning_attr.artifacts.scores import Scores
from lightning_attr.errors import UserError, expect_within
from lightning_attr.ground_truth import Evaluated, as_json, evaluate, read_scores
from lightning_attr.ground_truth.figures import figures, loss_change_figure, scalars
from lightning_attr.ground_truth.metrics import (
    GenerationDeviation,
    Given,
    LossChange,
    MeanAveragePrecision,
    PerQuery,
    RecallAtK,
    Top1,
    mean_interval,
)
from lightning_attr.ground_truth.metrics.functional import loss_change
from lightning_attr.ground_truth.pack import Pack
from lightning_attr.ground_truth.records import LossChangePoint
from lightning_attr.ground_truth.retrained import load_retrained, removed_group
from lightning_attr.ground_truth.right_groups import RankedGroups, RightGroups, ranked_groups
from lightning_attr.tasks.analysis import require_one_rank

Item = dict[str, Any]


@dataclass(frozen=True)
class Relevant:
    """Which samples are known to be relevant, to which queries.

    Args:
        store: The store that was scored.
        attribute: A sample is relevant where this attribute of it is true, such as ``planted``.
        queries: The queries that it is relevant to; None is all.
        k: The K of recall@K.
    """

    store: InputPath
    attribute: str
    queries: list[int] | None = None
    k: list[int] | None = None


class Evaluation(pl.LightningModule):
    """A ``test`` of scores and leave-K-out runs. Writes ``metrics.json`` and TensorBoard scalars and figures.

    Args:
        retrained: Folders of ``Retraining`` runs.
        scores: Files of scores; give the pack that they are checked against, or what is relevant for recall@K and mAP.
        relevant: What recall@K and mAP are measured against.
        pack: The manifest of a sweep's pack, ``NAME.json``, for LDS and leave-K-out with no training.
        groups: What top-1 and mAP of groups are measured against.
    """

    makes = ("metrics.json",)

    def __init__(
        self,
        retrained: list[InputPath] | None = None,
        scores: list[InputPath] | None = None,
        relevant: Relevant | None = None,
        pack: InputPath | None = None,
        groups: RightGroups | None = None,
    ) -> None:
        super().__init__()
        self.retrained = retrained or []
        self.scores = scores or []
        self.relevant = relevant
        self.pack = pack
        self.groups = groups
        if not self.retrained and not self.scores and pack is None:
            raise UserError(
                "model: give retrained (folders of Retraining runs), a pack, scores with relevant, or several"
            )
        if self.scores and relevant is None and pack is None and groups is None:
            raise UserError("model.relevant: missing; recall@K and mAP of scores need to know what is relevant")
        if groups is not None and not self.scores:
            raise UserError("model.scores: found none, expected those whose groups are to be ranked")
        self.measures = nn.ModuleDict()
        self.points: list[LossChangePoint] = []
        self.evaluated: Evaluated | None = None

    def setup(self, stage: str) -> None:
        """Refuse several ranks: there is nothing to share."""
        require_one_rank(self)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return one item for each leave-K-out run and scores file, and one for the pack."""
        items: list[Item] = [read_retraining(folder) for folder in self.retrained]
        if self.relevant is not None:
            store = Store(self.relevant.store)
            rankings = [read_ranking(path, store, self.relevant) for path in self.scores]
            _check_queries(rankings, self.scores, self.relevant)
            items += rankings
        if self.groups is not None:
            items += [{"groups": ranked_groups(path, self.groups)} for path in self.scores]
        if self.pack is not None:
            items.append({"pack": self.pack})
        return DataLoader(items, batch_size=None)  # type: ignore[arg-type]

    def test_step(self, item: Item, batch_idx: int) -> None:
        """Add one run or scores file to the metrics of its method, or check all scores against the pack."""
        if "pack" in item:
            pack = Pack.load(item["pack"])
            self.evaluated = evaluate(pack, read_scores(self.scores, pack))
            return
        if "groups" in item:
            self._add_groups(item["groups"])
            return
        if "relevant" in item:
            self._metrics(item["method"], self._ranking_metrics()).update(
                item["query_id"], item["scores"], item["relevant"]
            )
            return
        group = f"{item['method']}/k={item['k']}"
        query, original, retrained = item["query_id"], item["original_losses"], item["retrained_losses"]
        self._metrics(f"{group}/loss", {"loss_change": LossChange()}).update(query, original, retrained)
        if "original_latent" in item:
            self._metrics(f"{group}/image", {"generation_deviation": GenerationDeviation()}).update(
                query, item["original_latent"], item["retrained_latent"]
            )
        changes = loss_change(original, retrained).tolist()
        rows = zip(query.tolist(), changes, strict=True)
        self.points += [LossChangePoint(item["method"], item["k"], query_id, change) for query_id, change in rows]

    def _add_groups(self, ranked: RankedGroups) -> None:
        """Add a ranking of groups to the metrics of its method, and what chance and size reach to theirs."""
        groups = {"top_1": Top1(), "mean_average_precision": MeanAveragePrecision()}
        self._metrics(ranked.label, groups).update(ranked.query_id, ranked.scores, ranked.right)
        for label, values in ranked.baselines().items():
            baseline = self._metrics(label, {name: Given(name) for name in values})
            for name, of_queries in values.items():
                baseline[name].update(ranked.query_id, of_queries)

    def _ranking_metrics(self) -> dict[str, PerQuery]:
        assert self.relevant is not None
        for k in self.relevant.k or []:
            expect_within("model.relevant.k", k, 1)
        recalls = {f"recall_at_{k}": RecallAtK(k) for k in self.relevant.k or [10]}
        return {**recalls, "mean_average_precision": MeanAveragePrecision()}

    def _metrics(self, group: str, metrics: Mapping[str, PerQuery]) -> MetricCollection:
        key = group.replace(".", "_")  # module names have no dots
        if key not in self.measures:
            self.measures[key] = MetricCollection(dict(metrics)).to(self.device)
        found = self.measures[key]
        assert isinstance(found, MetricCollection)
        return found

    def on_test_epoch_end(self) -> None:
        """Log every mean, and write ``metrics.json`` and the figures."""
        results: dict[str, dict[str, float]] = {}
        for group, metrics in self.measures.items():
            assert isinstance(metrics, MetricCollection)
            for name, metric in metrics.items():
                assert isinstance(metric, PerQuery)
                key = f"{group.removesuffix('/loss').removesuffix('/image')}/{name}"
                results[key] = as_numbers(metric)
                self.log(f"evaluate/{key}", results[key]["mean"])
        content = {"metrics": results, "loss_changes": [point._asdict() for point in self.points]}
        if self.evaluated is not None:
            if self.logger is not None:  # not self.log: Lightning would print them all
                self.logger.log_metrics({f"evaluate/{k}": v for k, v in scalars(self.evaluated).items()}, step=0)
            content["pack"] = as_json(self.evaluated)
        write_record(Path(self.trainer.default_root_dir) / "metrics.json", content)
        if self.trainer.is_global_zero:
            self._write_figures()

    def _write_figures(self) -> None:
        drawn = {"loss_change": loss_change_figure(self.points)} if self.points else {}
        if self.evaluated is not None:
            drawn |= {f"pack_{name}": figure for name, figure in figures(self.evaluated).items()}
        for name, figure in drawn.items():
            figure.savefig(Path(self.trainer.default_root_dir) / f"{name}.png", dpi=150)
            if self.logger is not None:
                self.logger.experiment.add_figure(f"evaluate/{name}", figure, 0)  # type: ignore[attr-defined]


def as_numbers(metric: PerQuery) -> dict[str, float]:
    """Return the summary over queries and its bootstrap interval as plain numbers."""
    summary = metric.compute()
    with metric.sync_context():  # the queries of all ranks
        interval = mean_interval(metric.values()[1])
    numbers = {name: value.item() for name, value in summary._asdict().items()}
    return {**numbers, "low": interval.low, "high": interval.high}


def read_retraining(folder: str) -> Item:
    """Read what a ``Retraining`` run wrote.

    Raises:
        UserError: The run is not finished, or its file is damaged.
    """
    path = found(Path(folder) / "retraining.safetensors")
    if not path.exists():
        raise UserError(f"{path}: no such file; has the Retraining run in {folder} finished?")
    tensors, settings = load_retrained(path)
    # It was retrained without the top of these queries; what it does to others is no answer of the method.
    top_of = settings.get("top_of")
    rows = row_indices(tensors["query_id"], [top_of] if isinstance(top_of, int) else top_of)
    tensors = {name: value if name == "removed_id" else value[rows] for name, value in tensors.items()}
    group = removed_group(settings)
    method = settings["method"] if group is None else f"{group[1]} {group[0]}"  # groups may be of one size
    return {**tensors, "method": method, "k": settings["k"]}


def read_ranking(path: str, store: Store, relevant: Relevant) -> Item:
    """Read scores, and mark the relevant samples [Q, N] of every query."""
    scores = Scores.load(path)
    metas = (store.meta(int(position)) for position in store.positions(scores.sample_id.numpy()))
    marked = torch.tensor([bool(meta.attributes.get(relevant.attribute)) for meta in metas])
    if not marked.any():
        raise UserError(f"model.relevant.attribute: found no sample of {store.path} with {relevant.attribute!r}")
    rows = row_indices(scores.query_id, relevant.queries)
    return {
        "method": scores.method,
        "query_id": scores.query_id[rows],
        "scores": scores.scores[rows],
        "relevant": marked.expand(len(rows), -1),
    }


def _check_queries(rankings: Sequence[Item], paths: Sequence[str], relevant: Relevant) -> None:
    """Refuse two rankings of a query by one method, of which the second would be lost, and queries in no file."""
    seen: dict[tuple[str, int], str] = {}
    for path, ranking in zip(paths, rankings, strict=True):
        for query in ranking["query_id"].tolist():
            if (other := seen.setdefault((ranking["method"], query), path)) != path:
                raise UserError(f"{path}: found query {query} by {ranking['method']}, which {other} has too")
    known = {query for _, query in seen}
    if missing := [query for query in relevant.queries or [] if query not in known]:
        raise UserError(f"model.relevant.queries: found {missing[0]}, expected one of {sorted(known)}")


def row_indices(query_id: Tensor, queries: Sequence[int] | None) -> list[int]:
    """Return the rows of the wanted queries; a file may hold only some of them."""
    return [row for row, query in enumerate(query_id.tolist()) if queries is None or query in queries]
