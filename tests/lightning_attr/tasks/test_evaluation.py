"""The metrics of an evaluation state their error."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import Refused, assert_says
from miniature import Project
from synthetic_packs import world

from datamodules import Sample, Schema, Store, StoreWriter
from lightning_attr.artifacts import load_tensors, read_json, save_tensors
from lightning_attr.cli import run_stage
from lightning_attr.ground_truth.metrics import Interval, mean_interval
from lightning_attr.ground_truth.records import compare
from lightning_attr.models import load
from lightning_attr.noise import Draws
from lightning_attr.tasks.evaluation import read_retraining
from lightning_attr.tasks.retraining import measure


def test_every_mean_has_an_interval(project: Project) -> None:
    content = read_json(project.root / "evaluate/metrics.json")
    names = {key.rpartition("/")[2] for key in content["metrics"]}
    assert names == {"loss_change", "generation_deviation", "recall_at_4", "mean_average_precision"}
    for key, values in content["metrics"].items():
        if values["known"] > 1:
            assert values["low"] <= values["mean"] <= values["high"], key
    changes = torch.tensor([point["loss_change"] for point in content["loss_changes"]]).double()
    found = content["metrics"]["top/k=4/loss_change"]
    expected = mean_interval(changes)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def test_scores_against_a_pack_and_against_what_is_relevant(project: Project, tmp_path: Path) -> None:
    made = world(subsets=6)
    made.pack().save(tmp_path / "pack")
    scores = tmp_path / "scores.safetensors"
    made.scores("truth", made.influence).save(scores)
    arguments = project.args("evaluate", tmp_path / "run", model__init_args__pack=tmp_path / "pack.json")
    run_stage([*arguments, f"--model.init_args.scores=[{scores}]", "--model.init_args.relevant=null"])
    content = read_json(tmp_path / "run/metrics.json")
    assert "top/k=4/loss_change" in content["metrics"]
    assert [each["method"] for each in content["pack"]["scored"]] == ["truth"]
    assert {path.name for path in (tmp_path / "run").glob("*.png")} >= {"loss_change.png", "pack_loss_change.png"}
    manifest = read_json(tmp_path / "run/manifest.json")
    assert {"model.init_args.pack", "model.init_args.scores.0"} <= manifest["inputs"].keys()


def test_a_pack_of_other_samples_is_refused(project: Project, tmp_path: Path, refused: Refused) -> None:
    world(subsets=3).pack().save(tmp_path / "pack")
    arguments = project.args("evaluate", tmp_path / "run", model__init_args__pack=tmp_path / "pack.json")
    assert_says(refused(arguments), project.scores, "made from queries of digest")
    arguments = project.args("evaluate", tmp_path / "other", model__init_args__pack=tmp_path / "none.json")
    assert_says(refused(arguments), tmp_path / "none.json", "no such file")


def test_two_rankings_of_a_query_by_one_method_are_refused(project: Project, tmp_path: Path, refused: Refused) -> None:
    again = tmp_path / "again.safetensors"
    shutil.copy(project.scores, again)
    scores = f"[{project.scores}, {again}]"
    message = refused(project.args("evaluate", tmp_path / "run", model__init_args__scores=scores))
    assert_says(message, again, "found query 0", project.scores, "has too")


def test_a_retraining_counts_for_the_query_whose_top_it_went_without(project: Project, tmp_path: Path) -> None:
    tensors, settings = load_tensors(project.root / "leave_k_out/retraining.safetensors")
    assert settings["top_of"] is None
    for query in (0, 1):
        (tmp_path / str(query)).mkdir()
        save_tensors(
            tmp_path / str(query) / "retraining.safetensors", "retraining", tensors, {**settings, "top_of": query}
        )
    retrained = f"[{tmp_path / '0'}, {tmp_path / '1'}]"
    run_stage(project.args("evaluate", tmp_path / "run", model__init_args__retrained=retrained))
    content = read_json(tmp_path / "run/metrics.json")
    assert [point["query_id"] for point in content["loss_changes"]] == [0, 1]


def test_groups_of_one_size_are_told_apart(project: Project, tmp_path: Path) -> None:
    tensors, settings = load_tensors(project.root / "leave_k_out/retraining.safetensors")
    for name in ("red", "blue"):
        of_group = {**settings, "method": "group", "top_of": None, "grouping": "colour", "groups": [name]}
        save_tensors(tmp_path / name / "retraining.safetensors", "retraining", tensors, of_group)
    folders = str([str(tmp_path / name) for name in ("red", "blue")])
    args = project.args("evaluate", run=tmp_path / "run", model__init_args__retrained=folders)
    run_stage(args)
    changes = {key for key in read_json(tmp_path / "run/metrics.json")["metrics"] if key.endswith("/loss_change")}
    assert changes == {"colour red/k=4/loss_change", "colour blue/k=4/loss_change"}


def test_a_retraining_of_before_its_file_had_this_name(project: Project, tmp_path: Path) -> None:
    ours = project.root / "leave_k_out/retraining.safetensors"
    shutil.copy(ours, tmp_path / "leave_k_out.safetensors")
    found, expected = read_retraining(str(tmp_path)), read_retraining(str(ours.parent))
    assert found.keys() == expected.keys()
    assert torch.equal(found["retrained_losses"], expected["retrained_losses"])


def test_a_query_is_measured_with_its_first_caption(project: Project, tmp_path: Path) -> None:
    queries = Store(project.queries)
    fields = {**queries.schema.fields, "text": replace(queries.schema.fields["text"], shape=(2, 6, 16))}
    with StoreWriter(tmp_path / "two.lmdb", Schema(fields, queries.schema.encoders)) as writer:
        writer.put_encoder_state("image", queries.encoder_state("image") or b"")
        for position in range(len(queries)):
            arrays = {name: queries.read(name, [position])[0] for name in fields}
            meta, text = queries.meta(position), np.concatenate([arrays["text"], arrays["text"] + 1])
            captions = (*meta.captions, "another")
            writer.write(Sample(replace(meta, captions=captions), {**arrays, "text": text}, b""))
        writer.finish()
    stores = (queries, Store(tmp_path / "two.lmdb"))
    one, two = (measure(load(project.checkpoint), store, [0, 1], Draws(3), torch.device("cpu")) for store in stores)
    for name, value in one.items():
        assert torch.equal(two[name], value), name


def test_queries_that_were_not_sampled_are_refused_before_the_training(
    project: Project, tmp_path: Path, refused: Refused
) -> None:
    message = refused(project.args("leave_k_out", tmp_path / "run", model__init_args__queries=project.store))
    assert_says(message, project.store, "found no seed of query")
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_method_that_is_ahead_where_both_are_known_is_not_behind() -> None:
    means = {"all": Interval(0.5, 0.4, 0.6), "some": Interval(0.4, 0.3, 0.5), "other": Interval(0.2, 0.1, 0.3)}
    differences = {"some": Interval(-0.2, -0.3, -0.1), "other": Interval(0.3, 0.2, 0.4)}
    found = compare(means, lambda a, b: 10, lambda best, method: differences[method])
    assert {method: each.standing for method, each in found.items()} == {
        "all": "best",
        "some": "unknown",
        "other": "behind",
    }
