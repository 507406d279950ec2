import shutil
from pathlib import Path

import pytest
import torch
from report_runs import QUERIES, SAMPLES, Builder, write_store

from datamodules.store.records import Meta
from lightning_attr.artifacts import read_json, write_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.report.contents import collect
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics.functional import generation_deviation, loss_change


def flip_bit(path: Path, offset: int = -10) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_whole_run(whole: Builder) -> None:
    run = collect(whole.root)
    assert run.notes == []
    assert run.query_ids == list(QUERIES)
    assert run.queries is not None
    assert run.store is not None
    assert (run.queries.digest, run.store.digest) == (file_digest(whole.queries), file_digest(whole.train))
    # The stacked file at the top holds the same rows as those of the single queries, and adds none.
    assert [(ranking.label, sorted(ranking.rows)) for ranking in run.rankings] == [
        ("unlearning", list(QUERIES)),
        ("similarity-latent", list(QUERIES)),
    ]
    for query in QUERIES:
        scores = Scores.load(whole.root / "unlearn" / str(query) / "scores.safetensors")
        assert torch.equal(run.rankings[0].rows[query].score, scores.scores[0])
    assert [model.label for model in run.retrained] == ["top 8", "similarity 8", "random 8"]
    names = ["train", "sample", *(f"unlearn/{query}" for query in QUERIES), "similarity", "evaluate"]
    assert {stage.name for stage in run.stages} == {
        *names,
        *(f"leave_k_out/{m}" for m in ("top", "random", "similarity")),
    }
    assert [stage.task for stage in run.stages if stage.name == "unlearn/2"] == ["Unlearning"]


def test_changes_are_those_of_the_metrics(builder: Builder) -> None:
    builder.training()
    builder.sampling()
    tensors = builder.leave_k_out("top", 0.2)
    (model,) = collect(builder.root).retrained
    assert torch.equal(model.loss_change, loss_change(tensors["original_losses"], tensors["retrained_losses"]))
    assert torch.equal(model.deviation, generation_deviation(tensors["original_latent"], tensors["retrained_latent"]))


def test_stores_are_found_after_a_move(builder: Builder, tmp_path: Path) -> None:
    builder.everything()
    shutil.move(builder.root, tmp_path / "elsewhere")
    run = collect(tmp_path / "elsewhere")
    assert run.store is not None
    assert Path(run.store.path) == tmp_path / "elsewhere" / "train.lmdb"
    assert run.queries is not None
    assert run.notes == []


def test_lost_stores_are_named(copied: Builder) -> None:
    copied.forget_origin()
    for lost in (copied.train, copied.queries):
        lost.unlink()
    run = collect(copied.root)
    assert (run.store, run.queries) == (None, None)
    assert run.query_ids == list(QUERIES)
    assert [note for note in run.notes if "not found" in note] == [
        "The query store was not found: what it holds is shown by id only.",
        "The store of training images was not found: what it holds is shown by id only.",
    ]


def test_scores_of_other_queries_are_left_out(copied: Builder) -> None:
    """The queries were made anew, and one query was unlearned again: the ids of the others mean other images."""
    other = copied.root / "again" / "queries.lmdb"
    write_store(other, [Meta(0, ("another prompt",), None, None, {})])
    folder = copied.stage("unlearn/0-again", "fit", "Unlearning", store=str(copied.train), queries=str(other), query=0)
    digests = {"store": file_digest(copied.train), "queries": file_digest(other)}
    Scores(torch.zeros(1, SAMPLES), torch.tensor([0]), torch.arange(SAMPLES), "unlearning", {"digests": digests}).save(
        folder / "scores.safetensors"
    )
    run = collect(copied.root)
    assert run.notes == [f"{folder}/scores.safetensors was made from another query store and is left out."]
    assert len(run.rankings) == 2


def test_a_store_that_is_there_counts_more_than_one_that_is_gone(copied: Builder) -> None:
    """The queries were made anew in place, and one of them was unlearned since."""
    copied.forget_origin()
    copied.queries.unlink()
    write_store(copied.queries, [Meta(0, ("another prompt",), None, None, {})])
    copied.scores(copied.root / "unlearn/0/scores.safetensors", "unlearning", [0])
    run = collect(copied.root)
    assert run.queries is not None
    assert [(ranking.label, list(ranking.rows)) for ranking in run.rankings] == [("unlearning", [0])]
    assert sum("another query store and is left out" in note for note in run.notes) == len(QUERIES) - 1 + 2 + 3


def test_one_method_with_two_settings_is_two_rankings(copied: Builder) -> None:
    folder = copied.stage("unlearn/weak", "fit", "Unlearning", store=str(copied.train), queries=str(copied.queries))
    copied.scores(folder / "scores.safetensors", "unlearning", [0], step_size=0.01)
    run = collect(copied.root)
    assert [ranking.label for ranking in run.rankings] == [
        "unlearning (unlearn/0/scores)",
        "unlearning (unlearn/weak/scores)",
        "similarity-latent",
    ]
    assert "No scores by unlearning (unlearn/weak/scores) for queries 1, 2, 4." in run.notes


def test_scores_that_disagree_are_named(copied: Builder) -> None:
    first = Scores.load(copied.root / "unlearn/0/scores.safetensors")
    path = copied.root / "unlearning.safetensors"
    Scores(first.scores + 1, first.query_id, first.sample_id, first.method, first.settings).save(path)
    run = collect(copied.root)
    assert run.notes == [f"{path} has other scores for query 0 than a file before it; not shown."]
    assert torch.equal(run.rankings[0].rows[0].score, first.scores[0])


def test_parts_are_named_as_they_come(builder: Builder) -> None:
    builder.stage("train", "fit", "LatentDiffusion", finish=False)
    notes = collect(builder.root).notes
    assert "The stage train is not finished." in notes
    for missing in ("no queries yet", "no scores yet", "no retrained models yet", "no metrics yet"):
        assert any(missing in note for note in notes)
    shutil.rmtree(builder.root / "train")
    builder.training()
    builder.sampling()
    builder.unlearning(2)
    run = collect(builder.root)
    assert run.query_ids == list(QUERIES)
    assert "No scores by unlearning for queries 0, 1, 4." in run.notes
    assert not any("no queries" in note or "no scores" in note for note in run.notes)


def test_a_stage_alone_is_a_run(whole: Builder) -> None:
    run = collect(whole.root / "unlearn" / "1")
    assert [stage.name for stage in run.stages] == ["1"]
    assert list(run.rankings[0].rows) == [1]
    assert run.store is not None


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such folder"):
        collect(tmp_path / "none")
    with pytest.raises(UserError, match=r"found no manifest\.json"):
        collect(tmp_path)


@pytest.mark.parametrize("name", ["unlearn/1/scores.safetensors", "leave_k_out/top/retraining.safetensors"])
@pytest.mark.parametrize("offset", [-10, 3])
def test_damage_is_found(copied: Builder, name: str, offset: int) -> None:
    """In the tensors and in the header."""
    flip_bit(copied.root / name, offset)
    with pytest.raises(UserError, match=rf"{name}.*damaged"):
        collect(copied.root)


@pytest.mark.parametrize("content", [[], {"status": "finished"}, "text"])
def test_manifest_that_is_none(copied: Builder, content: object) -> None:
    write_json(copied.root / "train" / "manifest.json", content)
    with pytest.raises(UserError, match=r"train/manifest\.json: .*manifest of a run"):
        collect(copied.root)


@pytest.mark.parametrize("content", [[], {}])
def test_metrics_that_are_none(copied: Builder, content: object) -> None:
    write_json(copied.root / "evaluate" / "metrics.json", content)
    with pytest.raises(UserError, match=r"evaluate/metrics\.json: .*metrics of an evaluation"):
        collect(copied.root)


def test_nothing_is_changed(copied: Builder) -> None:
    before = {path: path.read_bytes() for path in copied.root.rglob("*") if path.is_file()}
    collect(copied.root)
    after = {path: path.read_bytes() for path in copied.root.rglob("*") if path.is_file()}
    locks = {path for path in after if path.name.endswith("-lock")}
    assert {path: after[path] for path in after.keys() - locks} == {
        path: content for path, content in before.items() if path not in locks
    }
    assert read_json(copied.root / "train" / "manifest.json")["status"] == "finished"
