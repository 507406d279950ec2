import io
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_pages import Element, Page, image, page_of, training_image
from report_runs import HOSTILE, LONG, QUERIES, SAMPLES, Builder

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.scores import SIGN, Scores
from lightning_attr.commands.report.command import main
from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.page import render
from lightning_attr.commands.report.scales import Scale
from lightning_attr.commands.report.sections import LEAST, LONGEST, MOST
from lightning_attr.console import printable
from lightning_attr.errors import shortened

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def page(whole: Builder) -> Element:
    return page_of(whole.root)


@pytest.mark.parametrize("method", [1, 2])
@pytest.mark.parametrize("query", QUERIES)
def test_rankings_are_those_of_the_scores(whole: Builder, page: Element, query: int, method: int) -> None:
    path = f"unlearn/{query}/scores.safetensors" if method == 1 else "similarity/scores.safetensors"
    scores = Scores.load(whole.root / path)
    row = scores.scores[scores.query_id.tolist().index(query)]
    best = scores.top(query, SAMPLES)
    panel = page.id(f"query-{query}").all("div", **{"class": "panel"})[method - 1]
    store = Store(whole.train)
    for kind, expected in (("most", best[:MOST]), ("least", best[::-1][:LEAST])):
        (grid,) = panel.all("ol", **{"class": kind})
        assert len(grid.all("li")) == len(expected)
        for item, sample in zip(grid.all("li"), expected, strict=True):
            position = int(store.positions([sample])[0])
            rank, score = item.all("div", **{"class": "score"})[0].text.split()
            assert int(rank.rstrip(".")) == best.index(sample) + 1
            assert score == Scale.of(row).signed(float(row[position]))
            caption = printable(shortened(store.meta(position).caption, LONGEST))
            assert caption in item.text
            assert training_image(page, item) == store.thumb(position)
            assert item.all("svg")[0].attributes["aria-label"] == caption


def test_the_sign_of_scores_is_said(page: Element) -> None:
    assert SIGN in page.all("header")[0].text


def test_query_and_what_it_was_made_from(whole: Builder, page: Element) -> None:
    store = Store(whole.queries)
    for position, query in enumerate(QUERIES):
        article = page.id(f"query-{query}")
        assert article.all("h3")[0].text == f"prompt {query}"
        subject = article.all("div", **{"class": "subject"})[0]
        assert subject.all("figcaption")[0].text == f"seed {10 + query} · steps 50 · guidance 7.5"
        assert image(subject) == store.thumb(position)


def test_the_check_side_by_side(whole: Builder, page: Element) -> None:
    labels = ("top", "similarity", "random")
    loaded = {label: load_tensors(whole.root / f"leave_k_out/{label}/retraining.safetensors")[0] for label in labels}
    for row, query in enumerate(QUERIES):
        figures = page.id(f"query-{query}").all("ul", **{"class": "strip"})[0].all("li")
        assert [figure.all("strong")[0].text for figure in figures] == [
            "the query", "original model", "without top 8", "without similarity 8", "without random 8",
        ]  # fmt: skip
        shown = np.asarray(Image.open(io.BytesIO(image(figures[1]))))
        assert np.array_equal(shown, loaded["top"]["original_image"][row].numpy())
        for figure, tensors in zip(figures[2:], loaded.values(), strict=True):
            shown = np.asarray(Image.open(io.BytesIO(image(figure))))
            assert np.array_equal(shown, tensors["retrained_image"][row].numpy())
            change = float((tensors["retrained_losses"] - tensors["original_losses"])[row].double().mean())
            deviation = float((tensors["retrained_latent"] - tensors["original_latent"])[row].double().square().mean())
            found = re.search(r"ΔL (\S+)(?: × (10\S+))? ΔG (\S+)(?: × (10\S+))?$", figure.text)
            assert found is not None
            assert number(found[1], found[2]) == pytest.approx(change, abs=1e-3)
            assert number(found[3], found[4]) == pytest.approx(deviation, abs=1e-3)


def number(text: str, unit: str | None) -> float:
    exponent = (unit or "10⁰").removeprefix("10").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float(text.replace("−", "-")) * 10.0 ** int(exponent)


def test_mean_change_and_standard_error(whole: Builder, page: Element) -> None:
    table = page.all("table", **{"class": "comparison"})[0]
    unit = re.search(r"10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", table.all("caption")[0].text)
    rows = table.all("tbody")[0].all("tr")
    assert [row.all("th")[0].text for row in rows] == [
        "top 8 4 queries",
        "similarity 8 4 queries",
        "random 8 4 queries",
    ]
    for row, label in zip(rows, ("top", "similarity", "random"), strict=True):
        tensors, _ = load_tensors(whole.root / f"leave_k_out/{label}/retraining.safetensors")
        changes = (tensors["retrained_losses"] - tensors["original_losses"]).double().mean(1).numpy()
        mean, _, error = row.all("td", **{"class": "number"})[0].text.split()
        power = unit[0] if unit else None
        assert number(mean, power) == pytest.approx(changes.mean(), abs=1e-3)
        assert number(error, power) == pytest.approx(changes.std(ddof=1) / math.sqrt(4), abs=1e-3)
        assert len(row.all("circle", **{"class": "point"})) == 4


def test_several_random_removals_are_averaged_for_each_query(copied: Builder) -> None:
    tensors = [load_tensors(copied.root / "leave_k_out/random/retraining.safetensors")[0]]
    tensors.append(copied.leave_k_out("random", 0.08, folder="random-1"))
    row = page_of(copied.root).all("table", **{"class": "comparison"})[0].all("tbody")[0].all("tr")[-1]
    changes = [(each["retrained_losses"] - each["original_losses"]).double().mean(1) for each in tensors]
    per_query = torch.stack(changes).mean(0)
    unit = re.search(r"10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", page_of(copied.root).all("caption")[0].text)
    mean, _, error = row.all("td", **{"class": "number"})[0].text.split()
    power = unit[0] if unit else None
    assert number(mean, power) == pytest.approx(float(per_query.mean()), abs=1e-4)
    assert number(error, power) == pytest.approx(float(per_query.std() / 2), abs=1e-4)


def test_retrieval_table(page: Element) -> None:
    table = page.all("div", **{"class": "retrieval"})[0]
    rows = [[cell.text for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")]
    assert rows == [
        ["ranking", "recall@5", "recall@10", "mAP"],
        ["unlearning", "0.312 ± 0.040", "0.625 ± 0.050", "unknown"],
        ["similarity-latent", "–", "0.250", "–"],
    ]


def test_stages_with_settings_and_digests(whole: Builder, page: Element) -> None:
    details = {each.all("strong")[0].text: each.text for each in page.all("details")}
    assert len(details) == 7 + len(QUERIES)
    assert f"{whole.train} {Store(whole.train).digest}" in details["unlearn/1"]
    for words in (
        "finished fit Unlearning",
        "model.init_args.query 1",
        "seed 3",
        "max_steps 7",
        f"torch {torch.__version__}",
    ):
        assert words in details["unlearn/1"]


def test_foreign_text_is_text(whole: Builder) -> None:
    html = render(collect(whole.root))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    root = Page(html).root
    assert any(HOSTILE in element.attributes["aria-label"] for element in root.all("svg", role="img"))
    assert not any("javascript:" in link.attributes["href"] for link in root.all("a"))
    assert not any(control in html for control in "\x00\x1b\u202e")
    assert LONG[:900] in html
    assert LONG[:1100] not in html


def test_credit_is_given(page: Element) -> None:
    item = page.all("ol", **{"class": "most"})[0].all("li")[0]
    credit = item.all("div", **{"class": "credit"})[0]
    assert credit.text == "CC BY-SA 2.0 · source"
    assert [link.attributes["href"] for link in credit.all("a")] == [
        "http://creativecommons.org/licenses/by-sa/2.0/",
        "http://farm8.example.org/7452/8930538048_z.jpg",
    ]


def test_page_is_self_contained(page: Element) -> None:
    """Only links lead out of it: nothing is loaded."""
    assert not page.all("script")
    for element in page.all():
        if element.tag == "use":
            assert page.id(element.attributes["href"].removeprefix("#")).tag == "image"
            continue
        loaded = [
            element.attributes[name] for name in ("src", "srcset", "data", "action") if name in element.attributes
        ]
        if element.tag != "a":
            loaded += [element.attributes["href"]] if "href" in element.attributes else []
        assert all(address.startswith("data:") for address in loaded)
    styles = "".join(style.text for style in page.all("style"))
    assert "url(" not in styles
    assert "@import" not in styles


def test_page_is_accessible(page: Element) -> None:
    assert page.all("html")[0].attributes["lang"] == "en"
    assert all("alt" in each.attributes for each in page.all("img"))
    assert all("aria-label" in each.attributes or "aria-hidden" in each.attributes for each in page.all("svg"))
    levels = [int(each.tag[1]) for each in page.all() if re.fullmatch("h[1-6]", each.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(next <= before + 1 for before, next in pairwise(levels))
    ids = [each.attributes["id"] for each in page.all() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    named = {
        each.attributes[name] for each in page.all() for name in ("for", "aria-labelledby") if name in each.attributes
    }
    targets = {each.attributes["href"][1:] for each in page.all("a") if each.attributes["href"].startswith("#")}
    assert named | targets <= set(ids)
    inputs = {each.attributes["id"] for each in page.all("input")}
    assert inputs == {each.attributes["for"] for each in page.all("label")}


def test_the_same_run_gives_the_same_page(whole: Builder) -> None:
    assert render(collect(whole.root)) == render(collect(whole.root))


def test_unfinished_run(builder: Builder) -> None:
    builder.stage("train", "fit", "LatentDiffusion", finish=False)
    page = page_of(builder.root)
    missing = page.all("aside")[0].text
    assert "The stage train is not finished." in missing
    assert "There are no queries yet" in missing
    assert not page.all("article")
    assert page.all("details")[0].all("span", **{"class": "unfinished"})[0].text == "not finished"


def test_one_query_without_a_check(builder: Builder) -> None:
    builder.training()
    builder.sampling()
    builder.unlearning(1)
    page = page_of(builder.root)
    assert not page.all("fieldset")
    assert not page.all("table")
    assert "Ranked by unlearning" in page.id("query-1").text
    assert "No training image has been ranked for this query yet." in page.id("query-0").text
    assert "No retrained model was measured on this query yet." in page.id("query-1").text


def test_single_query_has_no_standard_error(copied: Builder) -> None:
    for folder in (copied.root / "leave_k_out").iterdir():
        path = folder / "retraining.safetensors"
        tensors, settings = load_tensors(path)
        one = {name: tensor if name == "removed_id" else tensor[:1] for name, tensor in tensors.items()}
        save_tensors(path, "retraining", one, settings)
    table = page_of(copied.root).all("table", **{"class": "comparison"})[0]
    assert "±" not in table.all("tbody")[0].text
    assert "top 8 1 query" in table.text
    assert not table.all("line", **{"class": "whisker"})


def test_scores_that_are_not_finite_have_no_rank(builder: Builder) -> None:
    builder.training()
    builder.sampling()
    scores = builder.unlearning(0)
    path = builder.root / "unlearn/0/scores.safetensors"
    scores.scores[0, :3] = math.nan
    scores.save(path)
    article = page_of(builder.root).id("query-0")
    assert "3 images have no finite loss delta" in article.text
    assert f"All {SAMPLES - 3} loss deltas" in article.text
    assert "caption number 0" not in [div.text for div in article.all("div", **{"class": "caption"})]
    scores.scores[:] = math.nan
    scores.save(path)
    assert "No training image has a finite loss delta." in page_of(builder.root).id("query-0").text


def test_without_stores_images_are_named_by_id(copied: Builder) -> None:
    copied.forget_origin()
    for lost in (copied.train, copied.queries):
        lost.unlink()
    best = Scores.load(copied.root / "similarity/scores.safetensors").top(0, 1)[0]
    article = page_of(copied.root).id("query-0")
    assert "prompt unknown" in article.text
    assert article.all("ol", **{"class": "most"})[1].all("div", **{"class": "caption"})[0].text == f"image {best}"
    assert len(article.all("ul", **{"class": "strip"})[0].all("img")) == 4  # those kept by the retrained models


def test_command_writes_the_page(copied: Builder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(copied.root)])
    assert str(copied.root / "report.html") in capsys.readouterr().out
    main([str(copied.root), "--out", str(tmp_path / "new" / "page.html")])
    assert (tmp_path / "new" / "page.html").read_bytes() == (copied.root / "report.html").read_bytes()


@pytest.mark.slow
def test_command_ends_with_one_line_where_there_is_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_attr.main", "report", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}: found no manifest.json in it or below, expected the folder of a run\n"
    assert not (tmp_path / "report.html").exists()
