"""Every method through the command line, and those that need the artefacts of other stages against them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import Refused
from miniature import Project
from torch import Tensor

from datamodules import Store
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output
from lightning_attr.methods import JourneyTrak
from lightning_attr.methods import gradient_method as gradient_method_module
from lightning_attr.methods.base import Context
from lightning_attr.models import Model, load
from lightning_attr.noise import Draws


def command(project: Project, run: Path, method: str, settings: dict[str, Any], **overrides: Any) -> list[str]:
    config = {"class_path": f"lightning_attr.methods.{method}", "init_args": settings}
    return project.args(
        "similarity",
        run,
        model__init_args__method=json.dumps(config),
        model__init_args__checkpoints=json.dumps([str(project.checkpoint)]),
        trainer__logger="false",
        **overrides,
    )


def scored(*arguments: Any, **overrides: Any) -> Scores:
    args = command(*arguments, **overrides)
    run_stage(args)
    return Scores.load(Path(args[args.index("--trainer.default_root_dir") + 1]) / "scores.safetensors")


TWO = {"draws": {"timesteps": 2}}


@pytest.mark.parametrize(
    ("method", "settings", "name"),
    [
        ("GradientSimilarity", {"output": TWO, "kind": "cosine"}, "gradient-cosine"),
        ("Influence", {"output": TWO, "curvature": "CURVATURE"}, "influence-diagonal"),
        ("Influence", {"output": TWO, "curvature": "EKFAC", "per_draw": True}, "influence-ekfac-per-draw"),
        ("ExactInfluence", {"output": TWO, "regularisation": 0.2}, "influence-exact"),
        ("Trak", {"output": TWO, "projection": 64}, "trak"),
        ("DTrak", {"output": TWO, "projection": 16, "per_draw": True, "weights": "cross_attention"}, "d-trak-per-draw"),
        ("JourneyTrak", {"output": TWO, "noises": 2, "projection": 64}, "journey-trak"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_of_each(
    project: Project, ekfac: Path, tmp_path: Path, method: str, settings: dict[str, Any], name: str
) -> None:
    files = {"CURVATURE": project.curvature, "EKFAC": ekfac / "curvature.safetensors"}
    settings = {key: str(files.get(str(value))) if str(value) in files else value for key, value in settings.items()}
    found = scored(project, tmp_path / "run", method, settings)
    assert (found.method, found.scores.shape) == (name, (5, 40))
    assert (found.scores.std(1) > 0).all()
    assert found.settings["output"]["draws"]["timesteps"] == 2
    assert found.settings["output"]["function"] == ("squared_output" if method == "DTrak" else "loss")


def test_several_at_once(project: Project, tmp_path: Path) -> None:
    parts: list[tuple[str, dict[str, Any]]] = [
        ("GradientSimilarity", {"output": TWO}),
        ("Similarity", {"feature": "text"}),
        ("DTrak", {"output": TWO, "projection": 32}),
    ]
    methods = [{"class_path": f"lightning_attr.methods.{name}", "init_args": settings} for name, settings in parts]
    found = scored(project, tmp_path / "sum", "Combined", {"methods": methods})
    assert found.method == "gradient-dot+similarity-text+d-trak"
    singles = [scored(project, tmp_path / name, name, settings).scores.double() for name, settings in parts]
    standard = [(one - one.mean(1, keepdim=True)) / one.std(1, keepdim=True, correction=0) for one in singles]
    torch.testing.assert_close(found.scores.double(), torch.stack(standard).sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_unlearning_is_what_the_recorder_wrote(project: Project, tmp_path: Path, precision: str) -> None:
    settings = {"changed": f"{project.root}/unl[e]arn/weights.safetensors", "draws": {"timesteps": 1}, "views": None}
    options = {"model__init_args__query_ids": [0], "trainer__precision": precision}
    found = scored(project, tmp_path, "Unlearning", settings, **options)
    expected = Scores.load(project.scores)
    assert found.settings["precision"] == precision
    assert (found.method, found.query_id.tolist()) == ("unlearning", [0])
    assert torch.equal(found.sample_id, expected.sample_id)
    assert expected.scores.std() > 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-6)


def test_queries_that_were_not_unlearned_are_refused(project: Project, tmp_path: Path, refused: Refused) -> None:
    settings = {"changed": str(project.root / "unlearn/weights.safetensors")}
    assert "found none of query 1, expected all 5" in refused(command(project, tmp_path, "Unlearning", settings))


@pytest.fixture
def context(project: Project) -> Context:
    """The queries of the project as the attribution reads them."""
    store = Store(project.queries)
    at = np.arange(len(store))
    queries = {name: torch.from_numpy(store.read(name, at)[:, :1]) for name in ("latent", "text")}
    queries |= {"id": torch.tensor(store.ids), "captions": torch.ones(len(store), dtype=torch.int64)}
    return Context(queries, store, Store(project.store), load(project.checkpoint), torch.device("cpu"))


def journey(context: Context, timestep: int) -> Tensor:
    method = JourneyTrak(timestep, noises=2, projection=None)
    method._model = context.trained()
    return method.query_batch(context)["latent"][:, 0]


@torch.no_grad()
def predicted_by_hand(model: Model, store: Store, query: int, at: int) -> Tensor:
    """Sample a query once more with its own seed, and return the clean latent in view at a timestep."""
    attributes = store.meta(query).attributes
    text = torch.from_numpy(store.read("text", np.array([query]))[:, 0]).float()
    generator = torch.Generator().manual_seed(int(attributes["seed"]))
    latent = torch.randn(1, *model.latent_shape, generator=generator)
    scheduler = model.process._scheduler
    scheduler.set_timesteps(int(attributes["steps"]))
    for timestep in scheduler.timesteps:
        free, guided = (
            model.network(latent, timestep[None], states).sample for states in (model.null["text"][None], text)
        )
        step = scheduler.step(free + attributes["guidance"] * (guided - free), timestep, latent, generator=[generator])
        if int(timestep) == at:
            return step.pred_original_sample[0]  # type: ignore[no-any-return]
        latent = step.prev_sample
    raise AssertionError(f"no step at {at} among {scheduler.timesteps}")


@pytest.mark.parametrize(("timestep", "step"), [(400, 333), (900, 666), (0, 0)])
def test_a_journey_equals_the_scheduler_run_by_hand(context: Context, timestep: int, step: int) -> None:
    """The miniature samples in three steps, at 666, 333 and 0."""
    found = journey(context, timestep)
    for query in range(5):
        expected = predicted_by_hand(context.trained(), context.query_store, query, step)
        torch.testing.assert_close(found[query], expected, rtol=1e-4, atol=1e-4)


def test_a_journey_ends_at_the_query(context: Context) -> None:
    """Up to the half precision in which its text state is kept."""
    latent = context.queries["latent"][:, 0].float()
    torch.testing.assert_close(journey(context, 0), latent, rtol=0, atol=0.02 * float(latent.std()))
    assert (journey(context, 900) - latent).std() > 0.1 * latent.std()


def test_a_journey_is_noised_at_its_own_timestep() -> None:
    method = JourneyTrak(400, noises=3)
    query = method.settings()["query"]
    assert (query["window"], query["timesteps"], query["noises"]) == ([400, 401], 1, 3)


def test_a_journey_in_batches(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def features() -> Tensor:
        method = JourneyTrak(400, noises=2, projection=None, output=Output(draws=Draws(2)))
        method.prepare(context)
        return method._features_DQR

    together, asked = features(), []
    sample = Model.predicted_original
    monkeypatch.setattr(gradient_method_module, "QUERY_BATCH", 2)
    monkeypatch.setattr(
        Model, "predicted_original", lambda *args, **kw: (asked.append(len(args[2])), sample(*args, **kw))[1]
    )
    torch.testing.assert_close(features(), together, rtol=1e-3, atol=float(1e-4 * together.abs().max()))
    assert asked == [2, 2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timestep": 2000}, "method.timestep: found 2000, expected 0 to 999"),
        ({"timestep": -1}, "method.timestep: found -1, expected at least 0"),
        ({"noises": 0}, "method.noises: found 0, expected at least 1"),
        ({"per_draw": True}, "method.per_draw: found true, expected false"),
    ],
)
def test_a_journey_that_cannot_be(context: Context, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        JourneyTrak(**settings).prepare(context)


def test_journeys_of_images_that_were_not_sampled(project: Project, context: Context) -> None:
    photographs = replace(context, query_store=Store(project.val_store))
    photographs.queries["id"] = torch.from_numpy(photographs.query_store.ids[:5])
    with pytest.raises(UserError, match=r"val.lmdb: found no seed of query 40, expected sampled queries"):
        journey(photographs, 400)


def test_a_curvature_of_another_checkpoint(project: Project, tmp_path: Path, refused: Refused) -> None:
    tensors, settings = load_tensors(project.curvature)
    settings["digests"]["checkpoint"] = "another"
    save_tensors(tmp_path / "curvature.safetensors", "curvature", tensors, settings)
    args = command(project, tmp_path / "run", "Influence", {"curvature": str(tmp_path / "curvature.safetensors")})
    assert f"(fitted on another), expected one fitted on checkpoint {project.checkpoint}" in refused(args)


def test_a_curvature_of_each_checkpoint(project: Project, tmp_path: Path) -> None:
    """A list of files passes the command line."""
    found = scored(project, tmp_path, "Influence", {"output": TWO, "curvature": [str(project.curvature)]})
    assert [each["digest"] for each in found.settings["curvature"]] == [file_digest(project.curvature)]
