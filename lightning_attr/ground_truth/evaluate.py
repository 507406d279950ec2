"""The evaluation of scores against a pack."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_attr.artifacts.scores import Scores
from lightning_attr.ground_truth.group_removals import group_rankings, group_removals
from lightning_attr.ground_truth.metrics import lds_ceiling, variance_components
from lightning_attr.ground_truth.pack import Pack
from lightning_attr.ground_truth.records import Evaluated
from lightning_attr.ground_truth.removals import (
    attributability_of_queries,
    loss_change_points,
    noise_floor,
    removals,
)
from lightning_attr.ground_truth.subsets import prediction, scored_methods, small_removals, subset_losses


def evaluate(pack: Pack, scores: Mapping[str, Scores]) -> Evaluated:
    """Check scores, by the name of their method, against a pack. No model is trained for it.

    Args:
        pack: The ground truth.
        scores: Over the samples of the pack in its order, for queries of it: see :func:`matching.read_scores`.
    """
    masks, losses = subset_losses(pack, pack.rows("subset"))
    several = len(losses) > 1
    scored = scored_methods(pack, scores, masks, losses.mean(0)) if len(masks) else []
    return Evaluated(
        queries=len(pack.query_id),
        subsets=len(masks),
        repeats=len(losses),
        scored=scored,
        ceiling=lds_ceiling(losses) if several else None,
        variances=variance_components(losses) if several else None,
        removals=removals(pack),
        floor=noise_floor(pack),
        attributability=attributability_of_queries(pack),
        prediction=prediction(pack, scores, masks, losses.mean(0), scored),
        loss_changes=loss_change_points(pack),
        groups=group_removals(pack),
        group_rankings=group_rankings(pack, scores),
        small_removals=small_removals(pack, scores),
    )
