"""LDS: scores against models that were retrained on random subsets.

Shapes: Q queries, N samples, M subsets, S training seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_attr.artifacts.scores import Scores
from lightning_attr.ground_truth.metrics import lds_ceiling, lds_difference_interval, lds_interval
from lightning_attr.ground_truth.metrics.functional import linear_datamodelling_score, subset_sums
from lightning_attr.ground_truth.pack import Pack
from lightning_attr.ground_truth.records import Prediction, Scored, SmallRemovals, compare

#: Of fewer subsets there is no LDS at a small removal: the ranks of three points say next to nothing.
FEWEST_SUBSETS = 4


def subset_losses(pack: Pack, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the distinct subsets of some models, bool [M, N], and the queries' losses under them, float64 [S, Q, M].

    S is the number of training seeds that every subset has.
    """
    by_subset: dict[bytes, list[int]] = {}
    for row in sorted(rows, key=lambda row: pack.models[row].seed):
        by_subset.setdefault(pack.masks[row].numpy().tobytes(), []).append(row)
    repeats = min(map(len, by_subset.values()), default=0)
    chosen = torch.tensor([of_subset[:repeats] for of_subset in by_subset.values()], dtype=torch.int64)
    losses = pack.losses.double().mean(2)[chosen.reshape(len(by_subset), repeats)]  # [M, S, Q]
    return pack.masks[[of_subset[0] for of_subset in by_subset.values()]], losses.permute(1, 2, 0)


def small_removals(pack: Pack, scores: Mapping[str, Scores]) -> list[SmallRemovals]:
    """Return the LDS against random removals of each K, the smallest first, where there are enough of them."""
    by_k: dict[int, list[int]] = {}
    for row in pack.rows("random"):
        by_k.setdefault(pack.models[row].k, []).append(row)
    found = []
    for k, rows in sorted(by_k.items()):
        masks, losses = subset_losses(pack, rows)
        if len(masks) >= FEWEST_SUBSETS:
            scored = scored_methods(pack, scores, masks, losses.mean(0))
            ceiling = lds_ceiling(losses) if len(losses) > 1 else None
            found.append(SmallRemovals(k, len(masks), len(losses), scored, ceiling))
    return found


def scored_methods(pack: Pack, scores: Mapping[str, Scores], masks: Tensor, losses: Tensor) -> list[Scored]:
    """Return the LDS of every method and how it stands beside the best, on the queries that both have."""
    everywhere = {method: _spread(pack, each) for method, each in scores.items()}
    lds = {method: linear_datamodelling_score(each, masks, losses) for method, each in everywhere.items()}
    compared = compare(
        {method: lds_interval(each, masks, losses) for method, each in everywhere.items()},
        lambda a, b: int((~(lds[a] - lds[b]).isnan()).sum()),
        lambda a, b: lds_difference_interval(everywhere[a], everywhere[b], masks, losses),
    )
    return [Scored(method, compared[method], int((~lds[method].isnan()).sum())) for method in scores]


def _spread(pack: Pack, scores: Scores) -> Tensor:
    """Return scores of all queries of the pack, [Q, N]; NaN for those that the file has not."""
    result = torch.full((len(pack.query_id), len(pack.sample_id)), torch.nan)
    result[torch.searchsorted(pack.query_id, scores.query_id)] = scores.scores
    return result


def prediction(
    pack: Pack, scores: Mapping[str, Scores], masks: Tensor, losses: Tensor, scored: Sequence[Scored]
) -> Prediction | None:
    """Return what the best method predicts for a query that is typical of it; None where no LDS is known."""
    method = next((each.method for each in scored if each.lds.standing == "best"), None)
    if method is None:
        return None
    everywhere = _spread(pack, scores[method])
    lds = linear_datamodelling_score(everywhere, masks, losses)
    known = (~lds.isnan()).nonzero().flatten()
    row = int(known[lds[known].argsort()[(len(known) - 1) // 2]])
    return Prediction(
        method=method,
        query=int(pack.query_id[row]),
        lds=float(lds[row]),
        predicted=subset_sums(everywhere[row : row + 1], masks)[0].tolist(),
        measured=losses[row].tolist(),
    )
