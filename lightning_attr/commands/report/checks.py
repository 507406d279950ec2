"""What the page shows of an evaluation against a pack: LDS, loss change against K, a scatter, attributability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_attr.commands.report.removed_groups import RemovedGroups, removed_groups
from lightning_attr.commands.report.scales import Axis, Scale, Tick, ticks
from lightning_attr.ground_truth.metrics import Interval
from lightning_attr.ground_truth.records import Smallest, share_of_ceiling

COLOURS = 5
"""How many colours the page has for methods; further ones are drawn with dashes."""


@dataclass(frozen=True)
class Span:
    """An estimate with its interval: in words, and in per cent of an axis. The ends are None where unknown."""

    text: str
    interval: str
    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LdsRow:
    """The LDS of a method; ``share`` is that of the ceiling."""

    method: str
    queries: int
    standing: str
    share: str
    span: Span


@dataclass(frozen=True)
class Lds:
    """The LDS of all methods, the best first."""

    rows: list[LdsRow]
    ceiling: Span | None
    zero: float


@dataclass(frozen=True)
class Curve:
    """What the removals of one method do.

    Args:
        method: Its name; random removal is drawn apart.
        style: Classes of its colour and dashes.
        points: In per cent of the width and of the height from the top, by ascending K.
        line: The same as the points of a polyline.
        band: The interval as the points of a polygon; empty where there is none.
        words: Each K with its loss change, for those who do not see the figure.
    """

    method: str
    style: str
    points: list[tuple[float, float]]
    line: str
    band: str
    words: str


@dataclass(frozen=True)
class Curves:
    """Loss change against K; the noise floor is a span of the height, from the bottom."""

    unit: str
    curves: list[Curve]
    ks: list[Tick]
    values: list[Tick]
    floor: Span | None


@dataclass(frozen=True)
class Scatter:
    """What a method predicts of the models of random subsets, against what was measured."""

    method: str
    query: int
    lds: str
    points: list[tuple[float, float]]
    predicted: tuple[str, str]
    values: list[Tick]
    unit: str


@dataclass(frozen=True)
class Attributable:
    """The queries whose smallest removal that matters is of one size, by either measure of noise."""

    removed: str
    beyond_seeds: list[int]
    beyond_random: list[int]


@dataclass(frozen=True)
class GroundTruth:
    """An evaluation against a pack."""

    stage: str
    facts: list[str]
    lds: Lds | None
    curves: Curves | None
    scatter: Scatter | None
    attributability: list[Attributable]
    groups: RemovedGroups | None


def ground_truths(packs: Mapping[str, Mapping[str, Any]]) -> list[GroundTruth]:
    """Return what the page shows of every evaluation against a pack, by the name of its stage."""
    return [
        GroundTruth(
            stage=stage,
            facts=_facts(pack),
            lds=_lds(pack),
            curves=_curves(pack),
            scatter=_scatter(pack),
            attributability=_by_k(pack["attributability"]),
            groups=removed_groups(pack),
        )
        for stage, pack in packs.items()
    ]


def _facts(pack: Mapping[str, Any]) -> list[str]:
    models = sum(removal["models"] for removal in [*pack["removals"], *pack.get("groups", [])])
    facts = [f"{pack['queries']} queries"]
    if pack["subsets"]:
        seeds = f"{pack['repeats']} training seed{'' if pack['repeats'] == 1 else 's'}"
        facts.append(f"{pack['subsets']} random subsets, each with {seeds}")
    if models:
        facts.append(f"{models} models retrained without some images")
    if pack["floor"] is not None:
        facts.append(f"{pack['floor']['models']} with other seeds")
    return facts


def _lds(pack: Mapping[str, Any]) -> Lds | None:
    scored = sorted(pack["scored"], key=lambda each: -_or(each["lds"]["interval"]["estimate"], -math.inf))
    if not scored:
        return None
    intervals = [each["lds"]["interval"] for each in scored]
    ceiling = pack["ceiling"]
    axis = Axis.around([value for each in [*intervals, ceiling or {}] for value in each.values()])
    scale = Scale(0, 3)
    rows = [
        LdsRow(
            method=each["method"],
            queries=each["queries"],
            standing=_standing(each["lds"]["standing"]) if len(scored) > 1 else "",
            share=_share(interval, ceiling),
            span=_span(interval, axis, scale),
        )
        for each, interval in zip(scored, intervals, strict=True)
    ]
    return Lds(rows, _span(ceiling, axis, scale) if ceiling is not None else None, axis.at(0))


def _standing(standing: str) -> str:
    return standing if standing in ("best", "tie") else ""


def _share(interval: Mapping[str, float], ceiling: Mapping[str, float] | None) -> str:
    share = share_of_ceiling(Interval(**interval), Interval(**ceiling) if ceiling is not None else None)
    return f"{share} of ceiling".replace("-", "−") if share else ""


def _span(interval: Mapping[str, float], axis: Axis, scale: Scale) -> Span:
    estimate, low, high = interval["estimate"], interval["low"], interval["high"]
    known = math.isfinite(low) and math.isfinite(high)
    return Span(
        text=scale.plain(estimate),
        interval=f"{scale.plain(low)} to {scale.plain(high)}" if known else "",
        at=axis.at(_or(estimate, 0.0)),
        low=axis.at(low) if known else None,
        high=axis.at(high) if known else None,
    )


def _or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _curves(pack: Mapping[str, Any]) -> Curves | None:
    known = [each for each in pack["removals"] if math.isfinite(each["loss_change"]["interval"]["estimate"])]
    if not known:
        return None
    floor = pack["floor"]["loss_change"]["interval"] if pack["floor"] is not None else None
    intervals = [each["loss_change"]["interval"] for each in known] + ([floor] if floor is not None else [])
    values = [value for interval in intervals for value in interval.values()]
    scale, axis = Scale.of(torch.tensor(values)), Axis.around(values)
    places = _places(sorted({each["k"] for each in known}))
    methods = list(dict.fromkeys(each["method"] for each in known))
    return Curves(
        unit=scale.unit,
        curves=[
            _curve(
                method,
                _style(methods, method),
                [each for each in known if each["method"] == method],
                places,
                axis,
                scale,
            )
            for method in methods
        ],
        ks=[Tick(at, f"{k:,}") for k, at in places.items()],
        values=[Tick(100 - tick.at, tick.label) for tick in ticks(axis, scale)],
        floor=_span(floor, axis, scale) if floor is not None else None,
    )


def _places(ks: Sequence[int]) -> dict[int, float]:
    """Place each K, in per cent of the width, by its logarithm: they are spaced by factors."""
    if len(ks) == 1:
        return {ks[0]: 50.0}
    axis = Axis(math.log(ks[0]), math.log(ks[-1]))
    return {k: 6 + 0.88 * axis.at(math.log(k)) for k in ks}


def _style(methods: Sequence[str], method: str) -> str:
    if method == "random":
        return "random"
    index = [each for each in methods if each != "random"].index(method)
    return f"colour-{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def _curve(
    method: str,
    style: str,
    removals: Sequence[Mapping[str, Any]],
    places: Mapping[int, float],
    axis: Axis,
    scale: Scale,
) -> Curve:
    spans = {each["k"]: _span(each["loss_change"]["interval"], axis, scale) for each in removals}
    points = [(places[k], 100 - span.at) for k, span in spans.items()]
    upper = [(places[k], 100 - span.high) for k, span in spans.items() if span.high is not None]
    lower = [(places[k], 100 - span.low) for k, span in spans.items() if span.low is not None]
    if len(spans) == 1 and upper:  # a band of no width would not show
        upper, lower = ([(x - 2, y), (x + 2, y)] for ((x, y),) in (upper, lower))
    words = "; ".join(f"K {k}: {span.text} ({span.interval or 'interval unknown'})" for k, span in spans.items())
    return Curve(method, style, points, _path(points), _path([*upper, *reversed(lower)]), words)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _scatter(pack: Mapping[str, Any]) -> Scatter | None:
    drawn = pack["prediction"]
    if drawn is None:
        return None
    predicted, measured = torch.tensor(drawn["predicted"]).double(), torch.tensor(drawn["measured"]).double()
    across, up = _axis_of(drawn["predicted"]), _axis_of(drawn["measured"])
    scale_x, scale_y = Scale.of(predicted), Scale.of(measured)
    unit = f" {scale_x.unit}" if scale_x.unit else ""
    return Scatter(
        method=drawn["method"],
        query=drawn["query"],
        lds=Scale(0, 2).plain(drawn["lds"]),
        points=[(across.at(x), 100 - up.at(y)) for x, y in zip(drawn["predicted"], drawn["measured"], strict=True)],
        predicted=(
            f"{scale_x.signed(float(predicted.min()))}{unit}",
            f"{scale_x.signed(float(predicted.max()))}{unit}",
        ),
        values=[Tick(100 - tick.at, tick.label) for tick in ticks(up, scale_y)],
        unit=scale_y.unit,
    )


def _axis_of(values: Sequence[float]) -> Axis:
    """Return an axis that holds these values only, and not zero."""
    room = 0.06 * (max(values) - min(values)) or 1.0
    return Axis(min(values) - room, max(values) + room)


def _by_k(attributability: Sequence[Mapping[str, Any]]) -> list[Attributable]:
    """Group queries by the smallest removal that matters; those that none matters to, or may, last."""
    measures = ("beyond_seeds", "beyond_random")
    found: set[Smallest] = {each[measure] for each in attributability for measure in measures}
    ks = sorted(k for k in found if isinstance(k, int))
    rows: dict[Smallest, str] = {**{k: f"{k:,}" for k in ks}, None: "no set of these sizes", "unknown": "unknown"}
    return [
        Attributable(words, *([each["query"] for each in attributability if each[name] == k] for name in measures))
        for k, words in rows.items()
        if k in found
    ]
