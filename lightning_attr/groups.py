"""Scores of groups: what the images of an artist, an owner, a folder or a cluster of near-duplicates did together.

Shapes: Q queries, N samples, G groups.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import Tensor

from datamodules.grouping import Groups

Reduction = Literal["sum", "mean"]
"""What becomes of the scores of a group's samples. Influence is linear, so that a removal of all is worth their sum."""


def reduction_of(method: str) -> Reduction:
    """Return what suits a method: the mean of similarities, tuned ones and cosines, and of random scores.

    Of these a sum tells the size of a group alone. The name is what every file and pack has of a method.
    """
    return "mean" if re.search("similarity|cosine|^tuned-|^random$", method) else "sum"


def group_scores(scores: Tensor, groups: Groups, reduction: Reduction = "sum") -> Tensor:
    """Return the scores of groups, float64 [Q, G].

    Args:
        scores: Of samples, or their shares, [Q, N].
        groups: Of the same samples.
        reduction: The sum or the mean over a group's samples.

    >>> import numpy as np
    >>> groups = Groups("artist", ("a", "b"), np.array([0, 1, 1]), np.array([0, 1, 2]))
    >>> group_scores(torch.tensor([[3.0, 2.0, 4.0]]), groups)
    tensor([[3., 6.]], dtype=torch.float64)
    >>> group_scores(torch.tensor([[3.0, 2.0, 4.0]]), groups, "mean")
    tensor([[3., 3.]], dtype=torch.float64)

    """
    sums = torch.zeros(len(scores), len(groups.names), dtype=torch.float64)
    sums.index_add_(1, torch.from_numpy(groups.group), scores.double()[:, torch.from_numpy(groups.sample)])
    return sums if reduction == "sum" else sums / torch.from_numpy(groups.sizes)


def beyond_chance(scores: Tensor, groups: Groups) -> Tensor:
    """Return how far the score of each group lies beyond that of as many random samples, in standard deviations.

    Random samples are drawn without replacement: n of N, of mean m and variance v, have a sum of mean n m and variance
    n v (N - n) / (N - 1). Their mean has the same distance. It tells a group that matters from one that is large; it
    says nothing of whether the scores are right.

    Args:
        scores: Of samples, [Q, N].
        groups: Of the same samples.

    Returns:
        Float64 [Q, G]; NaN for a group of all samples, and where all scores are equal.
    """
    scores, sizes = scores.double(), torch.from_numpy(groups.sizes).double()
    count = scores.shape[1]
    mean, variance = scores.mean(1, keepdim=True), scores.var(1, correction=0, keepdim=True)
    spread = (variance * sizes * (count - sizes) / max(count - 1, 1)).sqrt()
    return ((group_scores(scores, groups) - sizes * mean) / spread).masked_fill(spread == 0, math.nan)
