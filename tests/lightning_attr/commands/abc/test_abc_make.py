"""Making a set: what is in it, that a kill anywhere changes no bit of it, and what is refused."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from abc_plans import MODELS, PROMPTS, Planned
from miniature import Project
from stopped import Moment, run

from datamodules.store import Store
from lightning_attr.abc import AbcSet
from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.cli import run_stage
from lightning_attr.commands.abc import main
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.models import load


def test_the_set_is_what_was_planned(made: Planned, project: Project) -> None:
    found = AbcSet.load(made.folder / "set")
    assert [(model.name, model.category, model.split) for model in found.models] == [each[:3] for each in MODELS]
    distractors, exemplars = Store(project.store), Store(project.val_store)
    assert np.array_equal(found.gallery.ids[found.distractors], distractors.ids)
    for model, (_, _, _, ids) in zip(found.models, MODELS, strict=True):
        theirs, ours = exemplars.positions(ids), found.gallery.positions(model.exemplars)
        for field in exemplars.schema.fields:
            assert np.array_equal(found.gallery.read(field, ours), exemplars.read(field, theirs))
        for our, their in zip(ours, theirs, strict=True):
            assert found.gallery.meta(our).captions == exemplars.meta(their).captions
            assert found.gallery.meta(our).attributes == exemplars.meta(their).attributes
            assert found.gallery.thumb(our) == exemplars.thumb(their)
        assert model.checkpoint == file_digest(made.folder / f"models/{model.name}/train/checkpoints/last.ckpt")
    assert np.array_equal(
        found.gallery.read("latent", found.distractors), distractors.read("latent", np.arange(len(distractors)))
    )


def test_every_query_is_its_models_own(made: Planned) -> None:
    found = AbcSet.load(made.folder / "set")
    assert [len(found.queries), len(found.models[0].query_ids)] == [18, 6]
    for model in found.models:
        own = Store(made.folder / f"models/{model.name}/sample/queries.lmdb")
        for kind, prompts in PROMPTS.items():
            metas = [found.queries.meta(place) for place in found.queries.positions(model.queries[kind])]
            assert [meta.captions[0] for meta in metas] == [prompt for prompt in prompts for _ in range(2)]
            assert all(meta.attributes["model"] == model.name for meta in metas)
            assert all(meta.attributes["prompts"] == kind for meta in metas)
            assert [meta.attributes["seed"] for meta in metas] == [100 + meta.id for meta in metas]
        latents = found.queries.read("latent", found.queries.positions(model.query_ids))
        assert np.array_equal(latents, own.read("latent", np.arange(6)))
    latents = found.queries.read("latent", np.arange(18)).reshape(18, -1)
    assert len(np.unique(latents, axis=0)) == 18


def test_models_saw_their_exemplars_and_fit_the_gallery(made: Planned, project: Project) -> None:
    found = AbcSet.load(made.folder / "set")
    weights = []
    for model in found.models:
        run = made.folder / f"models/{model.name}/train"
        customised = load(run / "checkpoints/last.ckpt")
        customised.was_trained_on(found.gallery)
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["data"]["init_args"]["subset"]["ids"] == list(model.exemplars)
        assert customised.chosen(None) == "adapter"
        weights.append(torch.cat([weight.detach().flatten() for weight in customised.select(None).values()]))
    assert not torch.equal(weights[0], weights[1])
    assert (
        load(project.checkpoint).digest
        == read_checkpoint(made.folder / "models/a-1/train/checkpoints/last.ckpt")["trained_model"]["base"]["digest"]
    )


def test_again_there_is_nothing_to_do(made: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (made.folder / "set").iterdir()}
    capsys.readouterr()
    main(["make", "-c", str(made.plan)])
    assert "finished already, nothing to do" in capsys.readouterr().err
    stores = {path: time for path, time in before.items() if path.suffix == ".lmdb"}
    assert {path: path.stat().st_mtime_ns for path in stores} == stores


def test_a_method_runs_over_the_set(made: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "similarity"), "accelerator": "cpu"},
        "model": {
            "class_path": "lightning_attr.tasks.Attribution",
            "init_args": {
                "queries": str(made.folder / "set/queries.lmdb"),
                "method": {"class_path": "lightning_attr.methods.Similarity"},
            },
        },
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(made.folder / "set/gallery.lmdb")},
        },
    }
    (tmp_path / "similarity.yaml").write_text(yaml.safe_dump(config))
    run_stage(["predict", "-c", str(tmp_path / "similarity.yaml")])
    capsys.readouterr()
    main(["table", str(tmp_path / "similarity/scores.safetensors"), "--set", str(made.folder / "set")])
    printed = capsys.readouterr().out
    assert "similarity-latent" in printed
    assert "40 distractors" in printed
    assert "seconds a query" in printed


def kills() -> list[Moment]:
    """Within the gallery, within a training, within the samples, within the queries, before the record."""
    return [
        Moment("datamodules.store.writer:StoreWriter.write", 30),
        Moment("lightning_attr.tasks.latent_diffusion:LatentDiffusion.training_step", 6),
        Moment("lightning_attr.tasks.sampler:Sampler.predict_step", 2),
        Moment("datamodules.store.writer:StoreWriter.write", 18),
        Moment("lightning_attr.abc.set:write_record", 1),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("sends", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_anywhere_changes_nothing(
    made: Planned, project: Project, tmp_path: Path, sends: signal.Signals
) -> None:
    planned = Planned(tmp_path, project)
    words = ["make", "-c", planned.plan]
    for place, moment in enumerate(kills()):
        ended = run(["abc", *words], tmp_path / f"{place}.txt", Moment(moment.function, moment.call, sends))
        assert ended.status == (-sends if sends == signal.SIGKILL else 128 + sends), ended
        assert "Traceback" not in ended.stderr
    ended = run(["abc", *words], tmp_path / "last.txt")
    assert ended.status == 0, ended
    ours, theirs = AbcSet.load(planned.folder / "set"), AbcSet.load(made.folder / "set")
    assert ours.models == theirs.models  # the digests of the weights included
    assert (ours.gallery.digest, ours.queries.digest) == (theirs.gallery.digest, theirs.queries.digest)


def refusal(planned: Planned, project: Project, **settings: Any) -> str:
    planned.write("make", planned.config(project, **settings))
    with pytest.raises(UserError) as error:
        main(["make", "-c", str(planned.plan)])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_plans_that_make_no_sense_are_refused(project: Project, tmp_path: Path) -> None:
    planned = Planned(tmp_path, project)
    (model,) = planned.config(project)["set"]["models"][:1]

    def with_model(**changed: Any) -> str:
        return refusal(planned, project, models=[{**model, **changed}])

    assert "set.models: found name '../x'" in with_model(name="../x")
    assert "set.models: found name '..'" in with_model(name="..")
    assert "found no sample 7" in with_model(exemplars=[7])
    assert "a-1: found no queries" in with_model(prompts={"thing": []})
    assert "a-1: found split 'holdout'" in with_model(split="holdout")
    assert "set.images: found 0" in refusal(planned, project, images=0)
    assert "models: found none" in refusal(planned, project, models=[])
    assert "none.lmdb: found no file" in refusal(planned, project, exemplars=str(tmp_path / "none.lmdb"))
    assert not planned.folder.exists()


def test_another_plan_in_the_same_folder_is_refused(made: Planned, project: Project) -> None:
    """The settings that are kept beside a run stay those of the run."""
    before = {path: path.read_bytes() for path in made.folder.glob("models/*/*.yaml")}
    try:
        models = made.config(project)["set"]["models"]
        assert "was made from something else" in refusal(made, project, models=models[:2])
        assert "holds a run of another config" in refusal(made, project, seed=7)
        assert len(before) == 6
        assert {path: path.read_bytes() for path in before} == before
    finally:
        made.write("make", made.config(project))
