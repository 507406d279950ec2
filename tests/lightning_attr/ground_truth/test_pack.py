"""Packs: what was measured comes back, damage is named, entries must agree, and the original is there bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from damage import assert_says, flipped, truncated
from miniature import Project
from synthetic_packs import SAMPLES, world

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.cli import run_stage
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics.functional import generation_deviation
from lightning_attr.ground_truth.pack import Model, Pack, unpack
from lightning_attr.ground_truth.packing import collect
from lightning_attr.models import load

NOTHING = {"scores": None, "top": None}  # of the config below
ENTRIES = {
    "top/similarity/query-2/k-3": ("similarity", {"scores": "SCORES", "query": 2, "top": 3}, None, 0, None),
    "random/k-3/0": ("random", {**NOTHING, "random": 3, "seed": 0}, None, 0, [0, 2]),
    "subset/0/seed-1": ("subset", None, {"fraction": 0.5, "seed": 0}, 1, None),
    "full/seed-1": ("full", None, None, 1, None),
}


def same(a: Pack, b: Pack) -> bool:
    """Whether two packs hold the same bits."""
    for field in fields(Pack):
        x, y = getattr(a, field.name), getattr(b, field.name)
        pairs = [(x[key], y[key]) for key in {**x, **y}] if field.name in ("weights", "null") else [(x, y)]
        for one, other in pairs:
            if isinstance(one, torch.Tensor):
                if one.dtype != other.dtype or not torch.equal(one.nan_to_num(nan=-77), other.nan_to_num(nan=-77)):
                    return False
            elif one != other:
                return False
    return True


@pytest.fixture(scope="module")
def made() -> Pack:
    pack = world(subsets=4).pack()
    pack.losses[0, 1] = torch.nan  # not measured
    return pack


@pytest.mark.parametrize("given", ["pack", "pack.json", "pack.safetensors"])
def test_round_trip(made: Pack, tmp_path: Path, given: str) -> None:
    made.save(tmp_path / given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack.json", "pack.safetensors"]
    loaded = Pack.load(tmp_path / given)
    assert same(loaded, made)
    assert loaded.models[0] == made.models[0]
    assert loaded.masks.shape == (len(made.models), SAMPLES)


def test_masks_take_a_bit_each(made: Pack, tmp_path: Path) -> None:
    made.save(tmp_path / "pack")
    assert load_tensors(tmp_path / "pack.safetensors")[0]["masks"].shape == (len(made.models), SAMPLES // 8)


def test_a_name_with_dots(made: Pack, tmp_path: Path) -> None:
    made.save(tmp_path / "pack.v1.5")
    assert same(Pack.load(tmp_path / "pack.v1.5"), made)


@pytest.mark.parametrize("at", [0.01, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("name", ["pack.json", "pack.safetensors"])
def test_a_flipped_bit_is_found_in_its_file(made: Pack, tmp_path: Path, name: str, at: float) -> None:
    made.save(tmp_path / "pack")
    flipped(tmp_path / name, tmp_path / name, at)
    with pytest.raises(UserError) as error:
        Pack.load(tmp_path / "pack")
    assert str(error.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", ["pack.json", "pack.safetensors"])
def test_a_file_that_is_short_missing_or_of_another_pack(made: Pack, tmp_path: Path, name: str) -> None:
    world(subsets=3).pack().save(tmp_path / "other")
    made.save(tmp_path / "pack")
    whole = (tmp_path / name).read_bytes()
    truncated(tmp_path / name, tmp_path / name)
    with pytest.raises(UserError, match=name):
        Pack.load(tmp_path / "pack")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        Pack.load(tmp_path / "pack")
    (tmp_path / name).write_bytes(whole)
    shutil.copy(tmp_path / name.replace("pack", "other"), tmp_path / name)
    with pytest.raises(UserError, match=r"pack\.safetensors: damaged or of another pack"):
        Pack.load(tmp_path / "pack")


def test_a_manifest_of_something_else(made: Pack, tmp_path: Path) -> None:
    made.save(tmp_path / "pack")
    (tmp_path / "pack.json").write_text("[]")
    with pytest.raises(UserError, match=r"pack\.json: found a list, expected the manifest of a pack"):
        Pack.load(tmp_path / "pack")


@pytest.fixture(scope="module")
def entries(project: Project, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One finished entry of each kind, run as a sweep does."""
    root = tmp_path_factory.mktemp("sweep") / "entries"
    scores = project.root / "similarity/scores.safetensors"
    for name, (method, exclude, subset, seed, evaluate) in ENTRIES.items():
        settings = {
            "model__init_args__method": method,
            "model__init_args__seed": seed,
            "model__init_args__evaluate": json.dumps(evaluate),
            "data__init_args__seed": seed,
            "data__init_args__exclude": json.dumps(exclude).replace("SCORES", str(scores)),
            "data__init_args__subset": json.dumps(subset),
        }
        run_stage(project.args("leave_k_out", root / name, **settings))
    return [root / name for name in ENTRIES]


def files(project: Project) -> tuple[str, str, str]:
    return str(project.store), str(project.checkpoint), str(project.queries)


@pytest.fixture(scope="module")
def collected(project: Project, entries: list[Path]) -> Pack:
    return collect(entries, *files(project), {"shared": True})


def test_collects_what_the_entries_measured(project: Project, entries: list[Path], collected: Pack) -> None:
    assert list(collected.models) == [
        Model("top/similarity/query-2/k-3", "similarity", 2, 3, 0),
        Model("random/k-3/0", "random", None, 3, 0),
        Model("subset/0/seed-1", "subset", None, 20, 1),
        Model("full/seed-1", "full", None, 0, 1),
    ]
    assert collected.query_id.tolist() == Store(project.queries).ids.tolist()
    for row, folder in enumerate(entries):
        tensors, settings = load_tensors(folder / "retraining.safetensors")
        removed = collected.sample_id[~collected.masks[row]]
        assert removed.tolist() == tensors["removed_id"].tolist()
        measured = tensors["query_id"].tolist()
        assert torch.equal(collected.losses[row, measured], tensors["retrained_losses"])
        # Bit for bit in one entry only: the original was measured on other batches of queries in another.
        assert torch.allclose(collected.original_losses[measured], tensors["original_losses"], rtol=1e-5)
        expected = generation_deviation(tensors["original_latent"], tensors["retrained_latent"])
        assert torch.equal(collected.deviations[row, measured], expected)
        before = tensors["original_losses"]
        if settings["method"] == "subset":  # of seed 1, as the model of all samples that is the last
            before = load_tensors(entries[-1] / "retraining.safetensors")[0]["retrained_losses"]
        changes = (tensors["retrained_losses"] - before).double().mean(1)
        assert torch.allclose(collected.loss_changes[row, measured], changes, atol=2e-5)
        assert collected.settings["draws"] == settings["draws"]
        assert collected.settings["digests"] == settings["digests"]
    unmeasured = [query for query in range(5) if query not in (0, 2)]
    assert collected.losses[1, unmeasured].isnan().all()
    assert collected.deviations[1, unmeasured].isnan().all()
    assert collected.settings["shared"] is True
    assert collected.settings["versions"]["torch"] == torch.__version__


def test_unpacked_original_is_the_original(project: Project, collected: Pack, tmp_path: Path) -> None:
    collected.save(tmp_path / "pack")
    unpack(Pack.load(tmp_path / "pack"), tmp_path / "out")
    found, expected = load(tmp_path / "out/original.ckpt"), load(project.checkpoint)
    weights = expected.network.state_dict()
    assert found.network.state_dict().keys() == weights.keys()
    for name, weight in found.network.state_dict().items():
        assert torch.equal(weight.view(torch.uint8), weights[name].view(torch.uint8)), name
    assert torch.equal(found.null["text"], expected.null["text"])
    assert (found.configs, found.latent_shape) == (expected.configs, expected.latent_shape)
    assert file_digest(tmp_path / "out/queries.lmdb") == file_digest(project.queries)
    Store(tmp_path / "out/queries.lmdb").verify()
    assert (tmp_path / "out/sample_ids.txt").read_text().split() == [str(sample) for sample in Store(project.store).ids]


def test_another_method_is_scored_from_a_pack_alone(project: Project, collected: Pack, tmp_path: Path) -> None:
    """The unpacked files are what tasks take, and what they make fits the pack."""
    unpack(collected, tmp_path)
    run_stage(project.args("similarity", tmp_path / "s", model__init_args__queries=tmp_path / "queries.lmdb"))
    run_stage(
        project.args(
            "curvature", tmp_path / "c", trainer__max_epochs=1, model__init_args__checkpoint=tmp_path / "original.ckpt"
        )
    )
    assert (tmp_path / "c/curvature.safetensors").exists()


def test_unpacking_again_changes_nothing_and_overwrites_nothing(made: Pack, tmp_path: Path) -> None:
    unpack(made, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    unpack(made, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / "queries.lmdb").write_bytes(b"mine")
    (tmp_path / "original.ckpt").unlink()
    with pytest.raises(UserError, match=r"queries\.lmdb: found another file there"):
        unpack(made, tmp_path)
    assert (tmp_path / "queries.lmdb").read_bytes() == b"mine"
    assert not (tmp_path / "original.ckpt").exists()


@pytest.fixture
def copied(entries: list[Path], tmp_path: Path) -> list[Path]:
    """The same entries, for a test to spoil."""
    root = entries[0].parents[3]  # above top/METHOD/query-Q/k-K
    shutil.copytree(root, tmp_path / "entries")
    return [tmp_path / "entries" / folder.relative_to(root) for folder in entries]


def refusal(folders: list[Path], project: Project) -> str:
    with pytest.raises(UserError) as error:
        collect(folders, *files(project), {})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_entry_must_be_finished(project: Project, copied: list[Path]) -> None:
    path = copied[2] / "retraining.safetensors"
    path.unlink()
    assert_says(refusal(copied, project), path, "not finished")
    (copied[3] / "retraining.safetensors").unlink()
    assert_says(refusal(copied, project), path, "nor are 1 others")
    assert_says(refusal([], project), "entries", "found none")


def test_entries_of_before_their_file_had_this_name(project: Project, copied: list[Path]) -> None:
    expected = collect(copied, *files(project), {})
    (copied[2] / "retraining.safetensors").rename(copied[2] / "leave_k_out.safetensors")
    found = collect(copied, *files(project), {})
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=0, equal_nan=True)


def test_a_damaged_entry(project: Project, copied: list[Path]) -> None:
    path = copied[1] / "retraining.safetensors"
    flipped(path, path, 0.8)
    assert_says(refusal(copied, project), path, "damaged")


@pytest.mark.parametrize("what", ["original", "queries", "store"])
def test_entries_of_other_files(project: Project, copied: list[Path], what: str) -> None:
    path = copied[2] / "retraining.safetensors"
    tensors, settings = load_tensors(path)
    settings["digests"][what] = "other"
    save_tensors(path, "retraining", tensors, settings)
    assert_says(refusal(copied, project), path, f"made from {what} of digest other")


def test_entries_of_other_draws(project: Project, copied: list[Path]) -> None:
    path = copied[2] / "retraining.safetensors"
    tensors, settings = load_tensors(path)
    save_tensors(path, "retraining", tensors, {**settings, "draws": {**settings["draws"], "seed": 9}})
    assert_says(refusal(copied, project), path, "'seed': 9", copied[0])


def test_entries_that_disagree_about_the_original(project: Project, copied: list[Path]) -> None:
    path = copied[2] / "retraining.safetensors"
    tensors, settings = load_tensors(path)
    save_tensors(path, "retraining", {**tensors, "original_losses": tensors["original_losses"] * 1.1}, settings)
    assert_says(refusal(copied, project), path, "original's losses differ", copied[0])


def test_a_config_beside_an_entry_is_not_believed(collected: Pack, project: Project, copied: list[Path]) -> None:
    for folder in copied:
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("query: 2", "query: 1"))
    assert collect(copied, *files(project), {}).models == collected.models
