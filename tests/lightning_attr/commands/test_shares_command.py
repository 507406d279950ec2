"""``lightning-attr shares`` over sets whose right answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from abc_codes import make_coded_set

from lightning_attr.abc.known import against_truth, known_queries, read_scores
from lightning_attr.abc.set import AbcSet
from lightning_attr.artifacts import read_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.shares import main as shares_command
from lightning_attr.errors import UserError
from lightning_attr.main import main
from lightning_attr.methods import Random, Similarity, attribute
from lightning_attr.shares import MOST_ERROR, Shares


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of many models, and the scores of two methods."""
    folder = tmp_path_factory.mktemp("coded")
    splits = {"validation": 60, "test": 150}
    abc = make_coded_set(folder, splits, exemplars=2, queries=2, distractors=150, nuisance=0.2, noise=0.1)
    for name, method in (("latent", Similarity()), ("random", Random())):
        attribute(method, abc.queries, abc.gallery).save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def file(coded: Path) -> Path:
    path = coded / "shares.safetensors"
    shares_command(["fit", str(coded), str(coded / "latent.safetensors"), "--out", str(path), "-q"])
    return path


def test_shares_on_models_that_it_was_not_fitted_on(coded: Path, file: Path, tmp_path: Path) -> None:
    """They are calibrated, and say more than equal ones: exemplars have most, and none has much without them."""
    shares = Shares.load(file)
    assert (shares.method, shares.settings["of_method"]["feature"]) == ("similarity-latent", "latent")
    assert shares.settings["calibration"]["split"] == "test"
    error, low, high = shares.settings["calibration"]["error"]
    assert low < error < high
    assert error < MOST_ERROR + shares.settings["calibration"]["by_chance"]
    abc = AbcSet.load(coded)
    known = known_queries(abc, read_scores(abc, [str(coded / "latent.safetensors")]), "test")
    have = torch.cat([shares.soft.shares(block.scores)[:, :-1][:, block.exemplar].sum(1) for block in known])
    none = torch.cat([shares.soft.shares(block.without())[:, -1] for block in known])
    assert float(have.mean()) > 5 * 2 / 152
    assert float(none.mean()) > 0.5


def test_the_truth_adds_up(coded: Path, file: Path) -> None:
    abc = AbcSet.load(coded)
    known = known_queries(abc, read_scores(abc, [str(coded / "latent.safetensors")]), "test")
    shares, truth, unit = against_truth(Shares.load(file).soft, known)
    for values in (shares, truth):
        assert torch.zeros(150).double().index_add(0, unit, values).tolist() == pytest.approx([4] * 150)


def test_check_says_what_fit_said(coded: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(coded), str(coded / "latent.safetensors"), "--shares", str(file)]
    shares_command(["check", *words, "--figure", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")])
    said, found = capsys.readouterr().out, read_json(tmp_path / "a.json")
    assert found["error"] == Shares.load(file).settings["calibration"]["error"]
    assert f"calibration error {found['error'][0]:.3f}, 95% interval" in said
    assert "150 models, 300 queries of the test split" in said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sum(found["bins"]["mass"]) == pytest.approx(1)


def test_one_model_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is unknown is null: the file is read again, and what is printed leaves it out."""
    of, scores, path, numbers = (str(tmp_path / name) for name in ("set", "scores.safetensors", "shares", "a.json"))
    abc = make_coded_set(tmp_path / "set", {"validation": 2, "test": 1}, queries=2, distractors=20)
    attribute(Similarity(), abc.queries, abc.gallery).save(scores)
    shares_command(["fit", of, scores, "--out", path, "--json", numbers])
    capsys.readouterr()
    shares_command(["check", of, scores, "--shares", path])
    error = Shares.load(path).error
    assert f"calibration error {error:.3f}; 1 models, 2 queries of the test split" in capsys.readouterr().out
    assert (read_json(numbers)["error"], read_json(numbers)["by_chance"]) == ([error, None, None], None)


def test_scores_by_chance_have_no_sharp_shares(coded: Path, tmp_path: Path) -> None:
    """What says nothing is spread over all: exemplars do not have more than others by much."""
    path = tmp_path / "shares.safetensors"
    shares_command(["fit", str(coded), str(coded / "random.safetensors"), "--out", str(path), "-q"])
    abc = AbcSet.load(coded)
    scores = Scores.load(coded / "random.safetensors")
    assert float(Shares.load(path).soft.shares(scores.scores)[:, :-1].amax()) < 0.1
    assert len(abc.models) == 210


def test_other_scores_are_refused(coded: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="has no shares of these scores: they are fitted for similarity-latent, not for"
    ):
        shares_command(["check", str(coded), str(coded / "random.safetensors"), "--shares", str(file)])
    both = [str(coded / "latent.safetensors"), str(coded / "random.safetensors")]
    with pytest.raises(UserError, match="found another method or other settings"):
        shares_command(["fit", str(coded), *both, "--out", str(tmp_path / "x")])
    other = make_coded_set(tmp_path, {"validation": 1}, distractors=5)
    attribute(Similarity(), other.queries, other.gallery).save(tmp_path / "scores.safetensors")
    with pytest.raises(UserError, match="made from store of digest"):
        shares_command(["fit", str(coded), str(tmp_path / "scores.safetensors"), "--out", str(tmp_path / "x")])


def test_scores_of_each_model_in_a_file_of_its_own(coded: Path, file: Path, tmp_path: Path) -> None:
    """As methods write them that look at a model's own weights, over its exemplars and some of the distractors."""
    abc, whole = AbcSet.load(coded), Scores.load(coded / "latent.safetensors")
    paths = []
    for model in abc.of_split("test"):
        rows = torch.from_numpy(abc.queries.positions(model.query_ids))
        samples = abc.gallery_of(model)[::-1].copy()
        own = Scores(
            whole.scores[rows][:, samples], whole.query_id[rows], whole.sample_id[samples], whole.method, whole.settings
        )
        own.save(tmp_path / f"{model.name}.safetensors")
        paths.append(str(tmp_path / f"{model.name}.safetensors"))
    for name, one in zip(("a", "b"), (paths, [str(coded / "latent.safetensors")]), strict=True):
        words = [str(coded), *one, "--shares", str(file), "--json", str(tmp_path / f"{name}.json"), "-q"]
        shares_command(["check", *words])
    a, b = (read_json(tmp_path / f"{name}.json")["error"] for name in ("a", "b"))
    np.testing.assert_allclose(a, b)


def test_a_figure_is_written_over_a_figure_alone(coded: Path, file: Path, tmp_path: Path) -> None:
    words = ["check", str(coded), str(coded / "latent.safetensors"), "--shares", str(file), "-q", "--figure"]
    for _ in range(2):
        shares_command([*words, str(tmp_path / "a.png")])
    (tmp_path / "photo.png").write_bytes(b"\x89PNG of somebody")
    for other in (tmp_path / "photo.png", tmp_path):
        with pytest.raises(UserError, match="found something else there, expected nothing or a reliability diagram"):
            shares_command([*words, str(other)])
    assert (tmp_path / "photo.png").read_bytes() == b"\x89PNG of somebody"


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["shares", "guess"])
    assert ended.value.code == 1
    assert "error: shares: found 'guess', expected one of fit, check" in capsys.readouterr().err
