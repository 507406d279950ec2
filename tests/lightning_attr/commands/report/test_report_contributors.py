"""Which contributors, how much, how sure: one table of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from report_pages import Element, page_of
from report_runs import HOSTILE, QUERIES, SAMPLES, Builder, write_store
from synthetic_packs import World

from datamodules import Meta, Store
from datamodules.grouping import Clusters
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.artifacts.scores import Scores, TopScores
from lightning_attr.commands.report.command import main
from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.contributors import Contributors
from lightning_attr.commands.report.scales import Scale
from lightning_attr.console import printable
from lightning_attr.errors import UserError
from lightning_attr.ground_truth import as_json, evaluate

ARTISTS = ("velin", "moro", HOSTILE)


def build(root: Path, attribute: str) -> Builder:
    """A run whose training images have groups, and models that were retrained without some."""
    root.mkdir()
    builder = Builder(root)
    metas = [Meta(3 * i, ("a drawing",), None, None, {attribute: ARTISTS[i % 3]}) for i in range(SAMPLES - 1)]
    metas.append(Meta(3 * SAMPLES, ("another",), None, None, {}))
    write_store(builder.train, metas)
    builder.stage("train", "fit", "LatentDiffusion", learning_rate=0.001)
    builder.sampling()
    parts = [builder.unlearning(query) for query in QUERIES]
    Scores.stack(parts).save(builder.root / "unlearning.safetensors")
    builder.similarity()
    for method, rise in (("random", 0.01), ("group", 0.2)):
        builder.leave_k_out(method, rise)
    path = root / "leave_k_out/group/retraining.safetensors"
    tensors, settings = load_tensors(path)
    save_tensors(path, "retraining", tensors, {**settings, "grouping": attribute, "groups": ["moro"]})
    return builder


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return build(tmp_path_factory.mktemp("drawings") / "run", "groups")


def section(builder: Builder) -> Element:
    (found,) = page_of(builder.root).all("section", **{"aria-labelledby": "contributors"})
    return found


def cells(table: Element) -> dict[str, list[str]]:
    rows = table.all("tbody")[0].all("tr")
    return {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in rows}


def by_artist(values: torch.Tensor) -> dict[str, torch.Tensor]:
    """The sum over each artist's images of [Q, N], which are in the order of the store."""
    return {name: values[:, place : SAMPLES - 1 : 3].double().sum(1) for place, name in enumerate(ARTISTS)}


def test_sums_of_the_first_ranking(drawings: Builder) -> None:
    scores = Scores.load(drawings.root / "unlearning.safetensors")
    sums = by_artist(scores.scores)
    found = section(drawings)
    rows = cells(found.all("table")[0])
    ordered = sorted(ARTISTS, key=lambda name: -float(sums[name].mean()))
    assert list(rows) == [*(" ".join(printable(name).split()) for name in ordered), "(none)"]
    everything = Contributors.of(collect(drawings.root), None)
    assert everything is not None
    first = torch.stack([sums[name] for name in ARTISTS]).argmax(0).tolist()
    for place, name in enumerate(ARTISTS):
        images, score, chance, first_for, _, *_ = rows[" ".join(printable(name).split())]
        assert int(images) == 13
        largest = max(abs(float(value)) for each in everything.table.rows for value in numbers(each.score))
        assert 0.1 <= largest < 100
        exponent = Scale.of(torch.stack([each.mean() for each in sums.values()])).exponent
        assert numbers(score)[0] == pytest.approx(float(sums[name].mean()) / 10.0**exponent, abs=0.02)
        assert "to" in score
        assert chance != "unknown"
        assert first_for == f"{first.count(place)} of {len(QUERIES)}"


def numbers(text: str) -> list[float]:
    return [float(word.replace("−", "-")) for word in re.findall(r"[+−]?\d+\.\d+", text)]


def test_the_loss_without_a_group_stands_beside_random_removal(drawings: Builder) -> None:
    found = section(drawings)
    assert "ΔL without it" in found.all("thead")[0].text
    rows = cells(found.all("table")[0])
    tensors, _ = load_tensors(drawings.root / "leave_k_out/group/retraining.safetensors")
    change = (tensors["retrained_losses"] - tensors["original_losses"]).double().mean(1)
    loss, random = rows["moro"][-2:]
    scale = 10.0 ** Scale.of(change).exponent
    assert numbers(loss)[0] == pytest.approx(float(change.mean()) / scale, abs=0.01)
    assert numbers(random)[0] < numbers(loss)[0]
    assert rows["velin"][-2:] == ["–", "–"]


def test_each_query_has_its_own(drawings: Builder) -> None:
    scores = Scores.load(drawings.root / "unlearning.safetensors")
    sums = by_artist(scores.scores)
    page = page_of(drawings.root)
    for row, query in enumerate(scores.query_id.tolist()):
        (region,) = page.id(f"query-{query}").all("div", **{"class": "contributors"})
        best = max(ARTISTS, key=lambda name: float(sums[name][row]))
        assert next(iter(cells(region.all("table")[0]))) == " ".join(printable(best).split())


def test_a_grouping_may_be_asked_for(tmp_path: Path) -> None:
    builder = build(tmp_path / "run", "artist")
    main([str(builder.root)])
    assert "Which contributors" not in (builder.root / "report.html").read_text()
    main([str(builder.root), "--grouping", "artist"])
    assert "By artist: the sum" in (builder.root / "report.html").read_text()
    store = Store(builder.train)
    Clusters(store.digest, ((0, 3),), {}).save(tmp_path / "near.json")
    main([str(builder.root), "--grouping", str(tmp_path / "near.json")])
    text = (builder.root / "report.html").read_text()
    assert "By near.json" in text
    assert "19 further groups are not shown" in text
    with pytest.raises(UserError, match="with the attribute 'owner', expected"):
        main([str(builder.root), "--grouping", "owner"])


def test_of_the_top_alone_it_says_that_it_does_not_know(tmp_path: Path) -> None:
    builder = build(tmp_path / "run", "groups")
    for path in builder.root.rglob("*.safetensors"):
        if path.name in ("scores.safetensors", "unlearning.safetensors"):
            scores = Scores.load(path)
            value, order = scores.scores.sort(dim=1, descending=True, stable=True)
            top = scores.sample_id[order[:, :5]], value[:, :5]
            TopScores(*top, scores.query_id, scores.method, scores.settings).save(path)
    main([str(builder.root)])
    text = (builder.root / "report.html").read_text()
    assert "No ranking has the scores of all images" in text
    assert "Which contributors" not in text
    with pytest.raises(UserError, match="with the attribute 'owner', expected"):
        main([str(builder.root), "--grouping", "owner"])


def test_a_pack_shows_what_each_group_did(copied: Builder) -> None:
    world = World(noise=0.1)
    world.groups("artist", {"velin": [0, 1, 2], HOSTILE: [4, 5]})
    numbers = as_json(evaluate(world.pack(), {"truth": world.scores("truth", world.influence)}))
    path = copied.root / "evaluate/metrics.json"
    write_record(path, {**read_record(path, {}, "metrics"), "pack": numbers})
    (found,) = page_of(copied.root).all("section", **{"aria-labelledby": "ground-truth"})
    (region,) = found.all("div", **{"aria-label": "Leave-group-out"})
    rows = cells(region.all("table")[0])
    assert set(rows) == {"artist: velin", " ".join(printable(f"artist: {HOSTILE}").split())}
    for each in numbers["groups"]:
        _, change, random, difference = rows[" ".join(printable(f"artist: {each['group']}").split())]
        for text, interval in ((change, "loss_change"), (random, "random"), (difference, "difference")):
            assert text.count("to") == 1, interval
    (ranked,) = found.all("div", **{"aria-label": "Rankings"})
    assert "truth, sum by artist" in ranked.text
