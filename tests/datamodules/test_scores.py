from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datamodules import Scores, UserError


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
    with pytest.raises(UserError, match=r"found \['weight'\], expected scores"):
        Scores.load(tmp_path / "weights")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="not a safetensors file"):
        Scores.load(tmp_path / "text")
