"""Tables at the width of a plain terminal."""

from __future__ import annotations

import re

import pytest
from rich.table import Table

from lightning_attr.console import out, print_table, summary
from lightning_attr.ground_truth import Evaluated
from lightning_attr.ground_truth.metrics import Interval, Variances
from lightning_attr.ground_truth.records import Attributable, Compared, Removal, Scored
from lightning_attr.ground_truth.tables import tables, write

NAMES = ["influence-ekfac-per-draw", "journey-trak", "random"]
LABELLED = [f"influence-ekfac-per-draw (runs/shapes/attribute/captions_{n}/scores.safetensors)" for n in (1, 3)]
LOSS_CHANGES = [Interval(1.36e-4, -1.03e-5, 1.346e-3), Interval(-2.5e-5, -1.1e-4, 2.2e-5)]
DEVIATIONS = [Interval(123.4, -5.5, 1234.6), Interval(0.5, 0.4, 0.6)]
LDS = Interval(-0.379, -0.598, -0.16)
CEILING = Interval(0.379, 0.16, 0.598)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "_width", 80)


def evaluated(names: list[str]) -> Evaluated:
    removals = [
        Removal(name, k, 60, 120, Compared(change, "behind"), Compared(deviation, "behind"))
        for k, change, deviation in zip((50, 1000), LOSS_CHANGES, DEVIATIONS, strict=True)
        for name in names
    ]
    scored = [Scored(name, Compared(LDS, "behind"), 60) for name in names]
    attributability = [Attributable(581921, None, None, 1.23e-5)]
    variances = Variances(1.23e-4, 4.56e-5, 7.89e-6)
    return Evaluated(60, 48, 2, scored, CEILING, variances, removals, removals[0], attributability, None, [])


def printed(capsys: pytest.CaptureFixture[str], names: list[str]) -> str:
    for table in tables(evaluated(names)):
        print_table(table)
    return capsys.readouterr().out


@pytest.mark.parametrize("names", [NAMES, LABELLED], ids=["names", "labels"])
def test_names_and_intervals_are_whole(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, names)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if line not in names)
    for name in names:  # once in LDS, once for each K
        assert len(re.findall(rf"^(│ )?{re.escape(name)}( .*)?$", text, re.MULTILINE)) >= 3
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for k, change, deviation in zip((50, 1000), LOSS_CHANGES, DEVIATIONS, strict=True):
        assert sum(f"K {k} loss change {write(change, 6)} behind" in line for line in lines) >= len(names)
        assert sum(f"generation deviation {write(deviation, 0)} behind" in line for line in lines) >= len(names)
    assert sum(f"{write(LDS, 3)} behind" in line for line in lines) == len(names)


def test_one_line_for_each_method_where_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, NAMES)
    for name in NAMES:
        assert re.search(rf"│ {name} +│ {re.escape(write(LDS, 3))} behind │ -100% │ 60 of 60 │\n", text)


def test_words_longer_than_a_line_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long, sentence = "x-" * 60, "limited by much that cannot be said within one line of a terminal " * 2
    table = Table("figure", "median", "why")
    table.add_row(long, "1.00", sentence)
    print_table(table)
    summary(long, [("digest", long), ("count", 1234), ("why", sentence)])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert (lines[0], lines[1][:24]) == (long, "  median 1.00  why limit")
    assert lines[3:6] == [long, f"  digest  {long}", "  count   1,234"]
    assert all(len(line) <= 80 for line in lines if long not in line)
    assert " ".join(text.split()).count(sentence.strip()) == 2
