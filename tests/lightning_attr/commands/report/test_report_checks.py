"""What the page says of an evaluation against a pack."""

import re
import shutil
from copy import deepcopy
from math import nan
from pathlib import Path

import pytest
import torch
from report_runs import HOSTILE, QUERIES, Builder, against_pack
from test_report_page import Element, page_of

from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.commands.report.checks import ground_truths
from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.scales import Axis, Scale, ticks
from lightning_attr.errors import UserError


@pytest.fixture(scope="module")
def section(whole: Builder) -> Element:
    (found,) = page_of(whole.root).all("section", **{"aria-labelledby": "ground-truth"})
    return found


def evaluated(builder: Builder, **changes: object) -> Element:
    """The section of a run whose evaluation is changed."""
    path = builder.root / "evaluate/metrics.json"
    content = read_record(path, {}, "metrics")
    write_record(path, {**content, "pack": {**content["pack"], **changes}})
    (found,) = page_of(builder.root).all("section", **{"aria-labelledby": "ground-truth"})
    return found


def test_lds_with_intervals_and_the_ceiling(section: Element) -> None:
    pack = against_pack()
    rows = section.all("table", **{"class": "comparison"})[0].all("tbody")[0].all("tr")
    expected = sorted(pack["scored"], key=lambda each: -each["lds"]["interval"]["estimate"])
    for row, each in zip(rows, expected, strict=False):
        interval = {name: f"{value:.3f}".replace("-", "−") for name, value in each["lds"]["interval"].items()}
        share = f"{each['lds']['interval']['estimate'] / pack['ceiling']['estimate']:.0%}".replace("-", "−")
        words = row.all("td")[-1].text
        assert words == f"{interval['estimate']} {interval['low']} to {interval['high']} {share} of ceiling"
        assert row.all("th")[0].text.startswith(f"{' '.join(each['method'].split())} {each['queries']} queries")
        assert len(row.all("line", **{"class": "whisker"})) == len(row.all("circle", **{"class": "mean"})) == 1
    assert rows[-1].text.startswith("ceiling")
    assert f"{pack['ceiling']['estimate']:.3f}" in rows[-1].text
    assert {rows[0].all("span", **{"class": "badge"})[0].text, rows[1].all("span", **{"class": "badge"})[0].text} == {
        "best",
        "tie",
    }
    assert HOSTILE in rows[2].text
    assert not rows[2].all("span", **{"class": "badge"})


def test_curves_are_the_loss_changes(section: Element) -> None:
    """Against the value lines: one step between two of them is the same everywhere."""
    plot = section.all("figure", **{"class": "plot"})[0]
    outer = plot.all("svg")[0]
    lines = {number(text.text): float(text.attributes["y"].rstrip("%")) for text in outer.all("text")}
    (low, at_low), *_, (high, at_high) = sorted(lines.items())
    dots = outer.all("circle", **{"class": "colour-0"})
    rows = [row for row in against_pack()["removals"] if row["method"] == "truth"]
    assert len(dots) == len(rows)
    for dot, row in zip(dots, rows, strict=True):
        share = (float(dot.attributes["cy"].rstrip("%")) - at_low) / (at_high - at_low)
        expected = row["loss_change"]["interval"]["estimate"]
        assert low + share * (high - low) == pytest.approx(expected, abs=2e-3)
    names = [item.text for item in plot.all("ul", **{"class": "legend"})[0].all("li")]
    assert names == ["truth", "noise", "random", "other seeds, nothing removed"]
    assert [tick.text for tick in plot.all("div", **{"class": "ks"})[0].all("span")] == ["2", "8"]
    assert len(outer.all("polygon")) == len(outer.all("polyline")) == 3


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_scatter_has_every_model(section: Element) -> None:
    plot = section.all("figure", **{"class": "plot"})[1]
    assert len(plot.all("circle")) == 40
    drawn = against_pack()["prediction"]
    assert f"Query {drawn['query']} by {drawn['method']}: LDS {drawn['lds']:.2f}" in plot.text


def test_attributability_names_every_query(section: Element) -> None:
    rows = section.all("table")[-1].all("tbody")[0].all("tr")
    attributability = against_pack()["attributability"]
    for column, measure in enumerate(("beyond_seeds", "beyond_random")):
        found = {}
        for row in rows:
            for query in re.findall(r"\d+", row.all("td")[column].text):
                found[int(query)] = row.all("th")[0].text
        assert found == {each["query"]: str(each[measure] or "no set of these sizes") for each in attributability}
        links = {link.attributes["href"] for row in rows for link in row.all("td")[column].all("a")}
        assert links == {f"#query-{query}" for query in found if query in QUERIES}


def test_queries_that_nothing_matters_to_come_last(copied: Builder) -> None:
    smallest = [(0, None, 8), (2, 8, 8), (4, None, "unknown"), (6, 2, None)]
    names = ("query", "beyond_seeds", "beyond_random")
    attributability = [{**dict(zip(names, each, strict=True)), "floor": 0.1} for each in smallest]
    rows = evaluated(copied, attributability=attributability).all("table")[-1].all("tbody")[0].all("tr")
    cells = [[cell.text for cell in [*row.all("th"), *row.all("td")]] for row in rows]
    assert cells == [["2", "6", ""], ["8", "2", "0 2"], ["no set of these sizes", "0 4", "6"], ["unknown", "", "4"]]


def test_a_pack_alone_shows_what_it_has(copied: Builder) -> None:
    section = evaluated(
        copied, scored=[], ceiling=None, floor=None, attributability=[], prediction=None, subsets=0, variances=None
    )
    assert not section.all("table")
    (plot,) = section.all("figure", **{"class": "plot"})
    assert "other seeds" not in plot.text


def test_no_interval_and_one_k() -> None:
    """A single query has no interval, and a single K a line of no length."""
    pack = deepcopy(against_pack())
    pack["removals"] = [row for row in pack["removals"] if row["k"] == 2]
    one = pack["removals"][0]["loss_change"]["interval"]
    one["low"] = one["high"] = nan
    pack["scored"][0]["lds"]["interval"]["estimate"] = nan
    (truth,) = ground_truths({"evaluate": pack})
    assert truth.curves is not None
    assert truth.curves.curves[0].band == ""
    assert "interval unknown" in truth.curves.curves[0].words
    assert [curve.points[0][0] for curve in truth.curves.curves] == [50.0] * 3
    assert truth.lds is not None
    assert (truth.lds.rows[-1].method, truth.lds.rows[-1].span.text) == ("truth", "unknown")


@pytest.mark.parametrize(("low", "high"), [(-0.12, 0.53), (0.0, 1e-4), (10.2, 11.9), (-3.0, 0.001)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    axis = Axis(low, high)
    scale = Scale.of(torch.tensor([low, high]).double())
    found = ticks(axis, scale)
    assert 2 <= len(found) <= 6
    assert len({tick.label for tick in found}) == len(found)
    for tick in found:
        value = number(tick.label) * 10.0**scale.exponent
        assert axis.at(value) == pytest.approx(tick.at, abs=1e-6)
        assert 0 <= tick.at <= 100


def test_entries_of_a_sweep_are_not_shown_one_by_one(copied: Builder) -> None:
    before = collect(copied.root)
    entry = copied.root / "sweep/entries/top/truth/query-0/k-8"
    shutil.copytree(copied.root / "leave_k_out/top", entry)
    write_record(copied.root / "sweep/sweep.json", {})
    run = collect(copied.root)
    assert len(run.retrained) == len(before.retrained)
    assert [stage.name for stage in run.stages] == [stage.name for stage in before.stages]
    assert run.notes == before.notes
    (copied.root / "evaluate/metrics.json").unlink()
    assert "The sweep sweep has not been evaluated: its models are not shown." in collect(copied.root).notes


@pytest.mark.parametrize("pack", [[], {"queries": 3}, {**against_pack(), "attributability": [{"query": 0, "k": 2}]}])
def test_an_evaluation_that_is_none(copied: Builder, pack: object) -> None:
    path = Path(copied.root / "evaluate/metrics.json")
    write_record(path, {**read_record(path, {}, "metrics"), "pack": pack})
    with pytest.raises(UserError, match=r"evaluate/metrics\.json: pack.*: found .*, expected "):
        collect(copied.root)
