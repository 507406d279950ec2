"""What the page shows of leave-group-out: the loss change without each group, beside random removal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lightning_attr.commands.report.scales import Scale
from lightning_attr.errors import shortened

MOST = 30
"""How many groups are shown."""
LONGEST = 200
"""How many characters of a name are shown."""


@dataclass(frozen=True)
class RemovedGroups:
    """Loss changes, mean over queries.

    Args:
        unit: The factor of all of them.
        rows: Of each group its name, its images, and loss changes in words: without it, without as many random images,
            and the difference.
        more: Groups that are not shown.
        rankings: Of each method its name and what it does with a group's scores, then the loss change without the
            group that it ranks first, that beyond random removal, and the rank correlation, in words.
    """

    unit: str
    rows: list[tuple[str, int, list[str]]]
    more: int
    rankings: list[tuple[str, list[str]]]


def removed_groups(pack: Mapping[str, Any]) -> RemovedGroups | None:
    """Return the groups that an evaluation has, the largest loss change first; None where there are none."""
    groups = pack.get("groups", [])
    if not groups:
        return None
    rankings = pack.get("group_rankings", [])
    intervals = [each["loss_change"] for each in [*groups, *rankings]]
    scale = Scale.of(torch.tensor([value for interval in intervals for value in interval.values()]))
    rows = [
        (
            shortened(f"{each['grouping']}: {each['group']}", LONGEST),
            each["images"],
            [_written(each[name], scale) for name in ("loss_change", "random", "difference")],
        )
        for each in groups[:MOST]
    ]
    return RemovedGroups(scale.unit, rows, len(groups) - len(rows), [_ranking(each, scale) for each in rankings])


def _ranking(ranking: Mapping[str, Any], scale: Scale) -> tuple[str, list[str]]:
    name = f"{ranking['method']}, {ranking['reduction']} by {ranking['grouping']}"
    changes = [_written(ranking[each], scale) for each in ("loss_change", "difference")]
    return name, [*changes, _written(ranking["correlation"], Scale(0, 2))]


def _written(interval: Mapping[str, float], scale: Scale) -> str:
    estimate, low, high = interval["estimate"], interval["low"], interval["high"]
    if not math.isfinite(estimate):
        return "unknown"
    ends = f" ({scale.plain(low)} to {scale.plain(high)})" if math.isfinite(low) else ""
    return scale.signed(estimate) + ends
