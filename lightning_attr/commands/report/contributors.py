"""Which contributors, how much, how sure: the groups of training images, by one ranking of a run.

Shapes: Q queries, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from datamodules.grouping import Groups, grouping_name, read_groups
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.report.contents import Ranking, Retrained, Run
from lightning_attr.commands.report.scales import Scale
from lightning_attr.contributors import Contributor, contributors, own_grouping
from lightning_attr.errors import UserError, shortened
from lightning_attr.ground_truth.metrics import Interval, mean_interval
from lightning_attr.groups import reduction_of

MOST = 20
"""How many groups are shown of all queries."""
OF_QUERY = 5
"""How many groups are shown of each query."""
LONGEST = 200
"""How many characters of a name are shown."""

Changes = Mapping[str, Mapping[int, tuple[float, float]]]
"""The loss change of each query without a group, and without as many random images."""


@dataclass(frozen=True)
class Row:
    """A group as the page shows it: every cell in words."""

    group: str
    images: int
    score: str
    interval: str
    share: str
    chance: str
    first: str
    ranks: list[str]
    loss: str
    random: str


@dataclass(frozen=True)
class ContributorTable:
    """Groups and what they did to some queries.

    Args:
        rows: The largest score first.
        count: How many groups there are in all.
        unit: The factor of the scores.
        loss_unit: The factor of the loss changes.
        others: The rankings that ranks are by.
        has: The columns that some row fills: ``share``, ``first``, ``loss``.
    """

    rows: list[Row]
    count: int
    unit: str
    loss_unit: str
    others: list[str]
    has: set[str]


@dataclass(frozen=True)
class Contributors:
    """The groups of a run.

    Args:
        grouping: By what images are grouped.
        ranking: By whose scores.
        reduction: What became of the scores of a group's images: ``sum`` or ``mean``.
        table: Over all queries.
        by_query: Of each query.
    """

    grouping: str
    ranking: str
    reduction: str
    table: ContributorTable
    by_query: dict[int, ContributorTable]

    @classmethod
    def of(cls, run: Run, grouping: str | None) -> Contributors | None:
        """Return them; None where the run's images have no groups, or no ranking has the scores of all.

        Raises:
            UserError: A grouping is asked for, and the images have it not or were not found.
        """
        if run.store is None:
            if grouping is not None:
                raise UserError(f"--grouping: found no store of training images in {run.path}, expected one")
            return None
        if (grouping := grouping or own_grouping(run.store)) is None:
            return None
        whole = {ranking.label: scores for ranking in run.rankings if (scores := _scores(ranking)) is not None}
        if not whole:
            read_groups(run.store, grouping)  # a mistake is told all the same
            run.notes.append("No ranking has the scores of all images: what groups did is not known.")
            return None
        label = min(whole, key=lambda each: reduction_of(whole[each].method) == "mean")
        scores = whole.pop(label)
        groups = read_groups(run.store, grouping, scores.sample_id.numpy())
        changes = loss_changes(run, grouping_name(grouping))
        ids = scores.query_id.tolist()

        rows = next(ranking.rows for ranking in run.rankings if ranking.label == label)

        def table(queries: Sequence[int], most: int) -> ContributorTable:
            parts = [part for query in queries if (part := rows[query].share) is not None]
            shares = torch.stack(parts) if len(parts) == len(queries) else None
            return _table(groups, scores.of_queries(queries), whole, changes, most, shares)

        by_query = {query: table([query], OF_QUERY) for query in ids} if len(ids) > 1 else {}
        return cls(groups.grouping, label, reduction_of(scores.method), table(ids, MOST), by_query)


def _scores(ranking: Ranking) -> Scores | None:
    """Return the scores of a ranking; None where it has those of the highest-scored samples alone, or unknown ones."""
    if not ranking.rows or not all(row.whole and bool(row.score.isfinite().all()) for row in ranking.rows.values()):
        return None
    rows = list(ranking.rows.values())
    queries = torch.tensor(list(ranking.rows))
    return Scores(torch.stack([row.score for row in rows]), queries, rows[0].sample_id, ranking.method)


def _table(
    groups: Groups,
    scores: Scores,
    others: Mapping[str, Scores],
    changes: Changes,
    most: int,
    shares: torch.Tensor | None,
) -> ContributorTable:
    queries = scores.query_id.tolist()
    fitting = {label: fitted for label, other in others.items() if (fitted := _fitted(other, scores)) is not None}
    everything = contributors(groups, scores, fitting, shares)
    found = everything[:most]
    removed = {each.group: _means(changes.get(each.group, {}), queries) for each in found}
    scale = Scale.of(torch.tensor([value for each in found for value in each.score]))
    loss_scale = Scale.of(torch.tensor([value for each in removed.values() for interval in each for value in interval]))
    rows = [_row(each, removed[each.group], scale, loss_scale, len(queries), list(fitting)) for each in found]
    has = {name for name in ("share", "first", "loss") if any(getattr(row, name) for row in rows)}
    return ContributorTable(rows, len(everything), scale.unit, loss_scale.unit, list(fitting), has)


def _fitted(other: Scores, scores: Scores) -> Scores | None:
    """Return another ranking's scores of the same queries and samples in their order; None where it has not all."""
    places = {sample: place for place, sample in enumerate(other.sample_id.tolist())}
    rows = {query: row for row, query in enumerate(other.query_id.tolist())}
    wanted, queries = scores.sample_id.tolist(), scores.query_id.tolist()
    if not places.keys() >= set(wanted) or not rows.keys() >= set(queries):
        return None
    values = other.scores[[rows[query] for query in queries]][:, [places[sample] for sample in wanted]]
    return Scores(values, scores.query_id, scores.sample_id, other.method)


def _row(
    each: Contributor,
    removed: tuple[Interval, Interval],
    scale: Scale,
    loss_scale: Scale,
    queries: int,
    others: Sequence[str],
) -> Row:
    loss, random = removed
    return Row(
        group=shortened(each.group, LONGEST),
        images=each.images,
        score=scale.signed(each.score.estimate),
        interval=_ends(each.score, scale),
        share="" if each.share is None else f"{each.share.estimate:.0%}",
        chance=f"{each.beyond_chance:+.1f}".replace("-", "−") if math.isfinite(each.beyond_chance) else "unknown",
        first=f"{each.first} of {queries}" if queries > 1 else "",
        ranks=[str(each.ranks.get(other, "")) for other in others],
        loss=_written(loss, loss_scale),
        random=_written(random, loss_scale),
    )


def _written(interval: Interval, scale: Scale) -> str:
    if not math.isfinite(interval.estimate):
        return ""
    ends = _ends(interval, scale)
    return scale.signed(interval.estimate) + (f" ({ends})" if ends else "")


def _ends(interval: Interval, scale: Scale) -> str:
    if not math.isfinite(interval.low):
        return ""
    return f"{scale.plain(interval.low)} to {scale.plain(interval.high)}"


def _means(changes: Mapping[int, tuple[float, float]], queries: Sequence[int]) -> tuple[Interval, Interval]:
    """Return the mean loss changes over those of the queries that were measured."""
    measured = torch.tensor([changes[query] for query in queries if query in changes], dtype=torch.float64)
    loss, random = measured.reshape(-1, 2).unbind(1)
    return mean_interval(loss), mean_interval(random)


def loss_changes(run: Run, grouping: str) -> Changes:
    """Return what retraining without groups did: in single runs, and in evaluations of packs, which count before."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for model in run.retrained:
        if model.group is not None and model.group[1] == grouping:
            random = _mean_random(run.retrained, model)
            for place, query in enumerate(model.query_id):
                change = float(model.loss_change[place])
                found.setdefault(model.group[0], {})[query] = change, random.get(query, math.nan)
    for pack in run.packs.values():
        for each in pack.get("groups", []):
            if each["grouping"] == grouping:
                for query in each["queries"]:
                    changes = query["loss_change"], query["random"]
                    found.setdefault(each["group"], {})[query["query"]] = changes
    return found


def _mean_random(models: Sequence[Retrained], like: Retrained) -> dict[int, float]:
    """Return the mean loss change of each query over models without as many random images."""
    values: dict[int, list[float]] = {}
    for model in models:
        if model.method == "random" and model.k == like.k:
            for query, change in zip(model.query_id, model.loss_change.tolist(), strict=True):
                values.setdefault(query, []).append(change)
    return {query: sum(each) / len(each) for query, each in values.items()}
