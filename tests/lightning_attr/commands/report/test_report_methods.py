"""Many rankings of one query, side by side."""

import torch
from report_pages import Element, Page, page_of
from report_runs import METHODS, QUERIES, SAMPLES, Builder

from lightning_attr.artifacts.scores import Scores, TopScores
from lightning_attr.commands.report.agreement import DEPTH, agreement
from lightning_attr.commands.report.contents import collect
from lightning_attr.commands.report.page import render
from lightning_attr.commands.report.scales import Scale
from lightning_attr.commands.report.sections import BESIDE, MOST


def beside(page: Element, query: int) -> dict[str, list[Element]]:
    """The cells of each ranking."""
    (table,) = page.id(f"query-{query}").all("div", **{"class": "beside"})[0].all("table")
    return {row.all("th")[0].text.split()[0]: row.all("td") for row in table.all("tr")}


def test_each_ranking_has_a_row_with_its_first_images(builder: Builder, many: dict[str, Scores]) -> None:
    page = page_of(builder.root)
    for place, query in enumerate(QUERIES):
        rows = beside(page, query)
        assert list(rows) == [*sorted(METHODS[:-1]), "random"]
        for method, cells in rows.items():
            scores = many[method]
            scale = Scale.of(scores.scores[place])
            shown = [cell.all("use")[0].attributes["href"] for cell in cells]
            assert shown == [f"#picture-{sample}" for sample in scores.top(query, BESIDE)]
            values = [scale.signed(score) for _, score in scores.ranked(query, BESIDE)]
            assert [cell.all("span", **{"class": "number"})[0].text for cell in cells] == values


def test_images_that_several_rankings_have_are_marked(builder: Builder, many: dict[str, Scores]) -> None:
    rows = beside(page_of(builder.root), 1)
    tops = {method: many[method].top(1, BESIDE) for method in METHODS}
    marked = 0
    for method, cells in rows.items():
        for cell, sample in zip(cells, tops[method], strict=True):
            rankings = sum(sample in top for top in tops.values())
            marks = [mark.text for mark in cell.all("span", **{"class": "mark"})]
            assert marks == ([f"in {rankings} rankings"] if rankings > 1 else [])
            marked += len(marks)
    assert 0 < marked < len(METHODS) * BESIDE


def test_overlap_of_rankings(builder: Builder, many: dict[str, Scores]) -> None:
    (table,) = page_of(builder.root).all("table", **{"class": "agreement"})
    rows = {row.all("th")[0].text.split()[1]: [cell.text for cell in row.all("td")] for row in table.all("tr")[1:]}
    for method, cells in rows.items():
        for other, cell in zip(rows, cells, strict=True):
            shared = [len(set(many[method].top(q, DEPTH)) & set(many[other].top(q, DEPTH))) for q in QUERIES]
            expected = sum(shared) / len(QUERIES) / DEPTH
            assert (cell == "") == (method == other)
            assert not cell or abs(float(cell) - 100 * expected) <= 0.5 + 1e-9
    assert "Two random rankings share 25%." in page_of(builder.root).id("agreement-note").text


def test_rankings_of_different_queries_have_no_overlap(builder: Builder) -> None:
    builder.training()
    builder.sampling()
    builder.unlearning(0)
    builder.unlearning(2)
    builder.scores(builder.root / "dot" / "scores.safetensors", "gradient-dot", [1])
    (table,) = page_of(builder.root).all("table", **{"class": "agreement"})
    assert [[cell.text for cell in row.all("td")] for row in table.all("tr")[1:]] == [["", "–"], ["–", ""]]


def test_one_ranking_stands_alone(builder: Builder) -> None:
    builder.training()
    builder.sampling()
    builder.unlearning(0)
    page = page_of(builder.root)
    assert not page.all("div", **{"class": "beside"})
    assert not page.all("table", **{"class": "agreement"})
    assert agreement(collect(builder.root).rankings) is None


def test_scores_of_the_highest_only(builder: Builder, many: dict[str, Scores]) -> None:
    """The least influential images are then unknown, and so is what the others scored."""
    path, scores = builder.root / "attribute/trak/scores.safetensors", many["trak"]
    ranked = torch.tensor([scores.ranked(query, 20) for query in QUERIES], dtype=torch.float64)
    before = [cell.text for cell in beside(page_of(builder.root), 4)["trak"]]
    TopScores(ranked[..., 0], ranked[..., 1], scores.query_id, "trak", scores.settings).save(path)
    page = page_of(builder.root)
    assert [cell.all("use")[0].attributes["href"] for cell in beside(page, 4)["trak"]] == [
        f"#picture-{sample}" for sample in scores.top(4, BESIDE)
    ]
    assert [cell.text for cell in beside(page, 4)["trak"]] == before
    article = page.id("query-4")
    labels = [label.text for label in article.all("label")]
    panel = article.all("div", **{"class": "panel"})[labels.index("trak")]
    assert "The highest 20 scores" in panel.text
    assert len(panel.all("ol", **{"class": "most"})[0].all("li")) == MOST
    assert not panel.all("ol", **{"class": "least"})


def test_pictures_are_kept_once(builder: Builder, many: dict[str, Scores]) -> None:
    html = render(collect(builder.root))
    kept = [each.attributes["id"] for each in Page(html).root.all("image")]
    assert len(kept) == len(set(kept)) <= SAMPLES
