"""How many of their highest-ranked images rankings share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_attr.commands.report.contents import Ranking

DEPTH = 10
"""How many images of each ranking are compared."""


@dataclass(frozen=True)
class Agreement:
    """Overlap@K: the share of their first K images that two rankings have in common, averaged over queries.

    Args:
        k: K.
        rows: A row per ranking: its label, and its overlap with every ranking; NaN where they share no query.
        chance: What two random rankings share, on average; None where it is not known how many images were ranked.
    """

    k: int
    rows: list[tuple[str, list[float]]]
    chance: float | None


def agreement(rankings: Sequence[Ranking]) -> Agreement | None:
    """Compare all rankings with each other; None where there are not two."""
    if len(rankings) < 2:
        return None
    tops = [_tops(ranking) for ranking in rankings]
    rows = [
        (ranking.label, [_overlap(mine, other) for other in tops]) for ranking, mine in zip(rankings, tops, strict=True)
    ]
    scored = max((len(row.score) for ranking in rankings for row in ranking.rows.values() if row.whole), default=0)
    return Agreement(DEPTH, rows, DEPTH / scored if scored else None)


def _tops(ranking: Ranking) -> dict[int, set[int]]:
    """Return the first images of every query that has enough of them."""
    ranked = {query: row.ranked().sample_id[:DEPTH].tolist() for query, row in ranking.rows.items()}
    return {query: set(samples) for query, samples in ranked.items() if len(samples) == DEPTH}


def _overlap(mine: dict[int, set[int]], other: dict[int, set[int]]) -> float:
    shares = [len(mine[query] & other[query]) / DEPTH for query in mine.keys() & other.keys()]
    return sum(shares) / len(shares) if shares else math.nan
