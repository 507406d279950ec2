import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_attr.artifacts import load_artifact, save_tensors
from lightning_attr.artifacts.before import scores_checksum_before
from lightning_attr.artifacts.scores import SIGN, Scores, TopScores, load_scores, merge_top
from lightning_attr.errors import UserError


def scores(values: list[list[float]], queries: list[int], method: str = "unlearning", **settings: object) -> Scores:
    ids = torch.tensor([30, 10, 20, 40])
    return Scores(torch.tensor(values), torch.tensor(queries), ids, method, settings)


def test_round_trip(tmp_path: Path) -> None:
    made = scores([[1, 2, 3, 4]], [7], steps=1, digests={"store": "x"})
    made.save(tmp_path / "deep" / "scores.safetensors")
    loaded = Scores.load(tmp_path / "deep" / "scores.safetensors")
    assert torch.equal(loaded.scores, made.scores)
    assert torch.equal(loaded.query_id, made.query_id)
    assert torch.equal(loaded.sample_id, made.sample_id)
    assert (loaded.method, loaded.settings) == ("unlearning", {"steps": 1, "digests": {"store": "x"}})
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["scores.safetensors"]


def test_top_breaks_ties_by_id() -> None:
    made = scores([[1, 5, 5, 5], [0, -1, -2, 3]], [7, 8])
    assert made.top(7, 2) == [10, 20]
    assert made.top(7, 4) == [10, 20, 40, 30]
    assert made.top(8, 2) == [40, 30]
    assert made.top(8, 0) == []


def test_wrong_questions() -> None:
    made = scores([[1, 5, 5, float("nan")], [1, 2, 3, 4]], [7, 8])
    with pytest.raises(UserError, match=r"no query 9, expected one of \[7, 8\]"):
        made.top(9, 1)
    with pytest.raises(UserError, match="top 5, expected 0 to 4"):
        made.top(8, 5)
    with pytest.raises(UserError, match="NaN for query 7"):
        made.top(7, 1)
    with pytest.raises(UserError, match="found shape"):
        scores([[1, 2, 3]], [7])
    with pytest.raises(UserError, match="twice"):
        scores([[1, 2, 3, 4]] * 2, [7, 7])


def test_stack() -> None:
    first, second = scores([[1, 2, 3, 4]], [7], steps=1), scores([[4, 3, 2, 1]], [9], steps=1)
    stacked = Scores.stack([first, second])
    assert stacked.top(7, 1) == [40]
    assert stacked.top(9, 1) == [30]
    with pytest.raises(UserError, match="different settings steps"):
        Scores.stack([first, scores([[1, 2, 3, 4]], [8], steps=2)])
    with pytest.raises(UserError, match="methods unlearning and random"):
        Scores.stack([first, scores([[1, 2, 3, 4]], [8], method="random", steps=1)])
    with pytest.raises(UserError, match="twice"):
        Scores.stack([first, first])
    other = Scores(first.scores, torch.tensor([8]), first.sample_id + 1, "unlearning", {"steps": 1})
    with pytest.raises(UserError, match="different samples"):
        Scores.stack([first, other])
    with pytest.raises(UserError, match="nothing to stack"):
        Scores.stack([])


def top_scores() -> TopScores:
    index, value = torch.tensor([[40, 20, 10], [10, 20, 30]]), torch.tensor([[4.0, 3, 2], [0, 0, -1]])
    return TopScores(index, value, torch.tensor([7, 9]), "unlearning", {"steps": 1})


def test_top_scores_answer_as_scores_do(tmp_path: Path) -> None:
    whole, top = scores([[1, 2, 3, 4], [-1, 0, 0, -2]], [7, 9], steps=1), top_scores()
    for query in (7, 9):
        for k in range(4):
            assert top.top(query, k) == whole.top(query, k)
            assert top.ranked(query, k) == whole.ranked(query, k)
    assert (whole.depth, top.depth) == (4, 3)
    top.save(tmp_path / "top")
    whole.save(tmp_path / "whole")
    loaded = load_scores(tmp_path / "top")
    assert isinstance(loaded, TopScores)
    assert loaded.ranked(9, 3) == [(10, 0.0), (20, 0.0), (30, -1.0)]
    assert (loaded.method, loaded.settings) == ("unlearning", {"steps": 1})
    assert isinstance(load_scores(tmp_path / "whole"), Scores)
    with pytest.raises(UserError, match="found top 4, expected 0 to 3"):
        top.top(7, 4)
    with pytest.raises(UserError, match="no query 8"):
        top.top(8, 1)
    with pytest.raises(UserError, match="found the top 3 of each query only, expected scores of all samples"):
        Scores.load(tmp_path / "top")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": torch.tensor([[1.0, 2, 3], [0, 0, 0]])}, "query 7 that do not fall"),
        ({"value": torch.tensor([[3.0, 2, 1], [0, torch.nan, 0]])}, "query 9 that do not fall"),
        ({"index": torch.tensor([[1, 2, 3], [1, 2, 1]])}, "a sample twice for query 9"),
        ({"index": torch.tensor([[1, 2], [1, 2]])}, r"found index \(2, 2\) and value \(2, 3\)"),
        ({"query_id": torch.tensor([7, 7])}, "query_id: found an id twice"),
    ],
)
def test_what_are_no_top_scores(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(top_scores(), **changes)


@pytest.mark.parametrize("k", [1, 5, 40, 60])
def test_a_running_top_is_that_of_the_whole(k: int) -> None:
    """Few different values, so that ties cross the borders of the parts."""
    values = torch.randint(-3, 4, (2, 50), generator=torch.Generator().manual_seed(0)).float()
    ids = torch.arange(50) * 3
    index, value = torch.empty(2, 0, dtype=torch.int64), torch.empty(2, 0)
    for start in range(0, 50, 7):
        part = slice(start, start + 7)
        index, value = merge_top(index, value, ids[part], values[:, part], k)
    whole = Scores(values, torch.tensor([0, 1]), ids, "random")
    found = TopScores(index, value, whole.query_id, "random")
    for query in (0, 1):
        assert found.ranked(query, min(k, 50)) == whole.ranked(query, min(k, 50))


@pytest.mark.parametrize("made", [scores([[1, 2, 3, 4]], [7], steps=1), top_scores()], ids=["whole", "top"])
def test_files_name_the_sign(made: Scores | TopScores, tmp_path: Path) -> None:
    made.save(tmp_path / "new")
    tensors, header = load_artifact(tmp_path / "new")
    assert header.words == {"method": made.method, "sign": SIGN}
    save_tensors(tmp_path / "other", header.kind, tensors, header.settings, method="m", sign="lower = more influential")
    with pytest.raises(UserError) as error:
        load_scores(tmp_path / "other")
    expected = f"found scores of the sign 'lower = more influential', expected {SIGN!r}"
    assert str(error.value) == f"{tmp_path / 'other'}: {expected}"


@pytest.mark.parametrize("made", [scores([[1, 2, 3, 4]], [7], steps=1), top_scores()], ids=["whole", "top"])
def test_files_of_before_headers_had_kinds(made: Scores | TopScores, tmp_path: Path) -> None:
    made.save(tmp_path / "new")
    tensors, _ = load_artifact(tmp_path / "new")
    metadata = {"method": made.method, "settings": json.dumps(dict(made.settings))}
    save_file(tensors, tmp_path / "old", {**metadata, "checksum": scores_checksum_before(tensors, metadata)})
    found = load_scores(tmp_path / "old")
    assert (type(found), found.method, found.settings) == (type(made), made.method, made.settings)
    assert found.ranked(7, 3) == made.ranked(7, 3)
    save_file(tensors, tmp_path / "old", {**metadata, "method": "other", "checksum": "0"})
    with pytest.raises(UserError, match="damaged"):
        load_scores(tmp_path / "old")


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    scores([[1, 2, 3, 4]], [7], steps=1).save(path)
    data = bytearray(path.read_bytes())
    for at in range(len(data)):
        changed = data.copy()
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            loaded = Scores.load(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017 (a flip of white space in the header changes nothing)
        else:
            assert loaded.top(7, 4) == [40, 20, 10, 30]
            assert loaded.settings == {"steps": 1}


def test_what_are_no_scores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Scores.load(tmp_path / "missing")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(UserError, match="found no checksum in its header"):
        Scores.load(tmp_path / "weights")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="not a safetensors file"):
        Scores.load(tmp_path / "text")


def test_what_of_the_settings_is_the_methods() -> None:
    """The same wherever a file lies, and for models of which each has a curvature and changed weights of its own."""
    settings = {
        "features": "runs/a/features.safetensors",
        "damping": {"value": 0.1, "rule": "mean"},
        "curvature": [{"kind": "ekfac", "digest": "5", "samples": {"count": 2}}],
        "methods": [{"method": "x", "changed": {"runs/a/changed": "6"}, "model": "some/file"}],
        "samples": {"count": 2},
        "digests": {"features": "1", "store": "2", "methods.0.model": "3"},
    }
    of_method = {
        "features": "1",
        "damping": {"value": 0.1, "rule": "mean"},
        "curvature": [{"kind": "ekfac"}],
        "methods": [{"method": "x", "model": "3"}],
    }
    assert Scores(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([0]), "x", settings).of_method == of_method
