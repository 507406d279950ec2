"""Every stage after the queries, with a query that is an image file of which no seed is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from damage import Refused, assert_says
from miniature import Project

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, read_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.commands.prepare.queries import main as prepare_queries
from lightning_attr.commands.report.command import main as report
from lightning_attr.encoders import store_image_encoder
from lightning_attr.encoders.store import jpeg
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.evaluate import evaluate
from lightning_attr.ground_truth.packing import collect
from lightning_attr.ground_truth.tables import removal_table
from lightning_attr.methods import JourneyTrak
from lightning_attr.methods.attribute import attribute
from lightning_attr.models import load


@pytest.fixture(scope="module")
def root(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a query store: training image 3 itself, and a retraining without its top."""
    root = tmp_path_factory.mktemp("files")
    store = Store(project.store)
    pixels = store_image_encoder(store).decode(torch.from_numpy(store.read("latent", [3])[:, 0].copy()))[0]
    (root / "out.jpg").write_bytes(jpeg(pixels.numpy()))
    words = ["--out", str(root / "queries.lmdb"), "--encoders_from", str(project.store)]
    prepare_queries([str(root / "out.jpg"), "--prompt", store.meta(3).caption, *words])
    scores = {"model__init_args__queries": root / "queries.lmdb", "model__init_args__method": json.dumps(DOT)}
    scores["model__init_args__checkpoints"] = f"[{project.checkpoint}]"
    run_stage(project.args("similarity", root / "scores", **scores))
    exclude = {"scores": str(root / "scores/scores.safetensors"), "top": 4, "query": 0}
    settings = {"model__init_args__queries": root / "queries.lmdb", "data__init_args__exclude": json.dumps(exclude)}
    run_stage(project.args("leave_k_out", root / "entries/top", **settings))
    return root


DOT = {"class_path": "GradientSimilarity", "init_args": {"kind": "cosine", "output": {"draws": {"timesteps": 4}}}}


def test_the_training_image_itself_ranks_first(root: Path) -> None:
    scores = Scores.load(root / "scores/scores.safetensors")
    assert scores.ranked(0, 1)[0][0] == 3


def test_unlearning_takes_it(project: Project, root: Path, tmp_path: Path) -> None:
    run_stage(project.args("unlearn", tmp_path / "run", model__init_args__queries=root / "queries.lmdb"))
    assert Scores.load(tmp_path / "run/scores.safetensors").query_id.tolist() == [0]


def test_a_retraining_compares_losses_alone(
    project: Project, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, _ = load_tensors(root / "entries/top/retraining.safetensors")
    losses = {"original_losses", "retrained_losses"}
    assert tensors.keys() == {"query_id", "removed_id", *losses}
    retrained = f"[{root / 'entries/top'}]"
    run_stage(project.args("evaluate", tmp_path / "run", model__init_args__retrained=retrained))
    metrics = read_json(tmp_path / "run/metrics.json")["metrics"]
    assert "top/k=4/loss_change" in metrics
    assert not any("generation_deviation" in name for name in metrics)


def test_a_pack_does_not_know_its_deviation(project: Project, root: Path) -> None:
    files = (str(project.store), str(project.checkpoint), str(root / "queries.lmdb"))
    pack = collect([root / "entries/top"], *files, {})
    assert pack.deviations.isnan().all()
    assert pack.similarities.isnan().all()
    assert not pack.losses.isnan().any()
    table = removal_table(evaluate(pack, {}))
    assert table.row_count == 1


def test_the_report_says_that_it_was_not_made_again(root: Path, tmp_path: Path) -> None:
    report([str(root), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "not made again: its seed, steps or guidance are not known" in page
    assert "Loss change ΔL" in page
    assert "Generation deviation ΔG" not in page
    assert "nan%" not in page


def test_a_journey_needs_the_seed(project: Project, root: Path) -> None:
    queries, store, model = Store(root / "queries.lmdb"), Store(project.store), load(project.checkpoint)
    with pytest.raises(UserError, match=r"queries.lmdb: found no seed of query 0, expected sampled queries"):
        attribute(JourneyTrak(), queries, store, model)


def test_training_images_are_no_queries(project: Project, tmp_path: Path, refused: Refused) -> None:
    message = refused(project.args("leave_k_out", tmp_path / "run", model__init_args__queries=project.store))
    assert_says(message, "found no seed of query")
