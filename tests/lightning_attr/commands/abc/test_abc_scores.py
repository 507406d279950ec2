"""Scores model by model: the ranks are those of the method's own scores, and runs are ordinary ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from abc_plans import Planned

from lightning_attr.abc import AbcRanks, AbcSet
from lightning_attr.commands.abc import main
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output
from lightning_attr.ground_truth.metrics import exemplar_ranks
from lightning_attr.methods import GradientSimilarity, attribute
from lightning_attr.models import load
from lightning_attr.noise import Draws


@pytest.fixture(scope="module", autouse=True)
def _configs(made: Planned) -> None:
    """Write the configs of the stages."""
    trainer = {"accelerator": "cpu", "logger": False}
    data = {"store": "${vars.set}/gallery.lmdb", "batch_size": 16}
    method = {
        "class_path": "lightning_attr.methods.GradientSimilarity",
        "init_args": {"kind": "cosine", "output": {"draws": {"timesteps": 2}}},
    }
    common = {"queries": "${vars.set}/queries.lmdb", "checkpoints": ["${vars.checkpoint}"]}
    model = {"class_path": "lightning_attr.tasks.Attribution"}
    loader = {"class_path": "datamodules.LatentDataModule", "init_args": data}
    made.write(
        "score", {"trainer": trainer, "model": {**model, "init_args": {**common, "method": method}}, "data": loader}
    )
    unlearning = {
        "class_path": "lightning_attr.methods.Unlearning",
        "init_args": {"changed": "${vars.run}/unlearn/*/weights.safetensors", "draws": {"timesteps": 2}},
    }
    made.write(
        "losses",
        {"trainer": trainer, "model": {**model, "init_args": {**common, "method": unlearning}}, "data": loader},
    )
    made.write(
        "unlearn",
        {
            "trainer": {**trainer, "max_steps": 2},
            "model": {
                "class_path": "lightning_attr.tasks.Unlearning",
                "init_args": {
                    "checkpoint": "${vars.checkpoint}",
                    "store": data["store"],
                    "queries": common["queries"],
                    "query": "${vars.query}",
                    "step_size": 1.0,
                    "draws": {"timesteps": 2},
                },
            },
        },
    )


def scores(made: Planned, *steps: dict[str, Any], **settings: Any) -> Path:
    """Run the action; return the file of ranks."""
    out = made.root / f"{settings.get('method', 'cosine')}.safetensors"
    config = {
        "set": str(made.folder / "set"),
        "models": str(made.folder / "models"),
        "method": "cosine",
        "steps": list(steps) or [{"verb": "predict", "configs": [str(made.root / "score.yaml")]}],
        "out": str(out),
        **settings,
    }
    main(["scores", "-c", made.write("scores", {"scores": config})])
    return out


def test_ranks_are_those_of_each_models_own_scores(made: Planned) -> None:
    kept = AbcRanks.load(scores(made, method="all"))
    whole = AbcSet.load(made.folder / "set")
    (found,) = kept.methods
    assert (found.method, found.distractors, kept.models) == ("all", 40, whole.models)
    test = [model for model in whole.models if model.split == "test"]
    assert found.query_id.tolist() == [query for model in test for query in model.query_ids]
    for model in test:
        customised = load(made.folder / f"models/{model.name}/train/checkpoints/last.ckpt")
        method = GradientSimilarity(kind="cosine", output=Output(draws=Draws(timesteps=2)))
        own = attribute(method, whole.queries, whole.gallery, customised, query_ids=model.query_ids, batch_size=16)
        columns = torch.from_numpy(whole.gallery_of(model))
        exemplars = [columns.tolist().index(place) for place in whole.gallery.positions(model.exemplars)]
        expected = exemplar_ranks(own.scores[:, columns], torch.tensor(exemplars))
        rows = torch.isin(found.query_id, torch.tensor(model.query_ids))
        count = len(model.exemplars)
        assert torch.equal(found.ranks.above[rows, :count], expected.above)
        assert torch.equal(found.ranks.equal[rows, :count], expected.equal)


def test_some_distractors_are_drawn_once_for_all_models(made: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    path = scores(made, method="some", distractors=12, seed=3)
    (found,) = AbcRanks.load(path).methods
    assert found.distractors == 12
    assert found.seconds is not None
    assert "12 distractors" in (main(["table", str(path)]), capsys.readouterr().out)[1]  # type: ignore[func-returns-value]
    assert scores(made, method="some", distractors=12, seed=3) == path  # finished already
    with pytest.raises(UserError, match="holds a run of another config"):
        scores(made, method="some", distractors=12, seed=4)


def test_some_queries_of_each_kind(made: Planned) -> None:
    (found,) = AbcRanks.load(scores(made, method="few", queries=1)).methods
    test = [model for model in AbcSet.load(made.folder / "set").models if model.split == "test"]
    assert found.query_id.tolist() == sorted(min(ids) for model in test for ids in model.queries.values())


@pytest.mark.slow
def test_stages_before_may_be_of_every_query(made: Planned) -> None:
    steps = [
        {"verb": "fit", "configs": [str(made.root / "unlearn.yaml")], "each_query": True},
        {"verb": "predict", "configs": [str(made.root / "losses.yaml")]},
    ]
    path = scores(made, *steps, method="unlearned", split="train")
    (found,) = AbcRanks.load(path).methods
    assert found.query_id.tolist() == list(range(6))
    assert len({*map(tuple, found.ranks.above.tolist())}) > 1
    assert (made.folder / "models/a-1/unlearned/unlearn/5/weights.safetensors").exists()


def test_what_makes_no_sense_is_refused(made: Planned) -> None:
    def refusal(*steps: dict[str, Any], **settings: Any) -> str:
        with pytest.raises(UserError) as error:
            scores(made, *steps, **settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    step = {"verb": "predict", "configs": [str(made.root / "score.yaml")]}
    assert "found no predict at their end" in refusal({**step, "verb": "fit"})
    assert "found no predict at their end" in refusal({**step, "each_query": True})
    assert "found no file none.yaml" in refusal({**step, "configs": ["none.yaml"]})
    assert "without configs" in refusal({**step, "configs": []})
    assert "score.yaml: " in refusal(step, out=str(made.root / "score.yaml"))  # written over nothing else
    assert "scores.method: found 'train'" in refusal(method="train")
    assert "scores.distractors: found 41, expected 1 to 40" in refusal(distractors=41)
    assert "scores.queries: found 0" in refusal(queries=0)
    assert "scores.models: found no nowhere/a-2/train" in refusal(models="nowhere")
    assert "abc.json: no such file" in refusal(set=str(made.root))
    other = made.root / "other"
    other.mkdir()
    for one, two in (("a-1", "a-2"), ("a-2", "a-1"), ("o-1", "o-1")):
        (other / one).symlink_to(made.folder / "models" / two)
    assert "as the set has it" in refusal(models=str(other))
    assert json.loads((made.folder / "set/abc.json").read_text())["models"][1]["checkpoint"] in refusal(
        models=str(other)
    )
