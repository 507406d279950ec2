"""Virtual training steps through the command line: against plain loops, resumed, shared, refused."""

from __future__ import annotations

import json
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from damage import Refused, assert_says, changed
from miniature import Project
from PIL import Image
from stopped import Moment
from test_ddp import assert_close, finish
from test_resume import TASKS, assert_same, curve, stopped_then_resumed
from tiny_finetunes import FineTune
from torch import Tensor

from datamodules import LatentDataModule, Store
from lightning_attr.artifacts import load_tensors, read_header, save_tensors
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.curvature import Damping, load_curvature
from lightning_attr.models import Model, load
from lightning_attr.noise import Draws, draw_timesteps, shared_noise, training_noise
from lightning_attr.second_moments import adam_diagonal, adam_of
from lightning_attr.tasks import steps_back
from lightning_attr.tasks import virtual_steps as module

STEP = f"{TASKS}VirtualSteps.training_step"
RATE, BETA, DROPOUT = 1e-3, 0.6, 0.3


def config(run: Path, checkpoint: Path, queries: Path, store: Path, **model: Any) -> dict[str, Any]:
    return {
        "trainer": {"default_root_dir": str(run), "accelerator": "cpu", "max_steps": 6},
        "checkpoint": {"every_n_train_steps": 1},
        "model": {
            "class_path": "lightning_attr.tasks.VirtualSteps",
            "init_args": {
                "checkpoint": str(checkpoint),
                "queries": str(queries),
                "draws": {"timesteps": 3},
                **model,
            },
        },
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(store), "batch_size": 8},
        },
    }


def written(path: Path, content: dict[str, Any], **settings: Any) -> list[str]:
    """The command of a config that is written beside its run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    verb = "predict" if content["model"]["class_path"].endswith(("Attribution", "Sampler")) else "fit"
    options = [word for key, value in settings.items() for word in (f"--{key.replace('__', '.')}", str(value))]
    return [verb, "-c", str(path), *options]


def virtual(project: Project, run: Path, **settings: Any) -> list[str]:
    """Six steps over 40 samples in batches of eight: one is of the second epoch."""
    own = {"weights": "cross_kv", "beta": BETA, "caption_dropout": DROPOUT}
    content = config(run, project.checkpoint, project.queries, project.store, **own)
    return written(run.with_name(f"{run.name}.yaml"), content, **settings)


@pytest.fixture(scope="module")
def straight(project: Project) -> Path:
    """Without a stop."""
    run_stage(virtual(project, project.root / "virtual"))
    return project.root / "virtual"


def rows_of(run: Path) -> Tensor:
    """The directions of a run in rows, [Q, P]."""
    tensors, _ = load_tensors(run / "directions.safetensors", "directions", "replayed directions")
    return torch.cat([value.flatten(1) for name, value in sorted(tensors.items()) if name != "query_id"], dim=1)


def in_double(checkpoint: Path) -> tuple[Model, dict[str, Tensor]]:
    model = load(checkpoint)
    model.network.double()
    return model, {name: weight.detach() for name, weight in sorted(model.select("cross_kv").items())}


def predicted(model: Model, weights: dict[str, Tensor], noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
    called = torch.func.functional_call(model.network, weights, (noisy, times), {"encoder_hidden_states": text})
    return called.sample.flatten(1)  # type: ignore[no-any-return]


def plain_directions(project: Project) -> Tensor:
    """The same in double precision, by loops over batches and queries, in reverse mode alone."""
    model, weights = in_double(project.checkpoint)
    optimizer = torch.load(project.checkpoint, weights_only=True)["optimizer_states"][0]
    place = {name: number for number, (name, _) in enumerate(model.network.named_parameters())}
    moments = [optimizer["state"][place[name]]["exp_avg_sq"].flatten() for name in weights]
    diagonal = 1 / ((torch.cat(moments).double() / (1 - 0.999**12)).sqrt() + 1e-8)
    queries, draws = Store(str(project.queries)), Draws(timesteps=3)
    timesteps = draw_timesteps(draws, 1000)
    adjoints = []
    for query in range(5):
        latent = torch.from_numpy(queries.read("latent", [query])[0, :1]).double().expand(3, -1, -1, -1)
        text = torch.from_numpy(queries.read("text", [query])[0, :1]).double().expand(3, -1, -1)
        noise = shared_noise(draws, [0, 1, 2], latent.shape[1:]).double()
        noisy, target = model.process.noised(latent, noise, timesteps)
        asked = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        errors = predicted(model, asked, noisy, timesteps, text) - target.flatten(1)
        gradients = torch.autograd.grad(errors.square().mean(), list(asked.values()))
        adjoints.append(torch.cat([gradient.flatten() for gradient in gradients]))
    adjoint = torch.stack(adjoints)
    momentum, direction = torch.zeros_like(adjoint), torch.zeros_like(adjoint)
    data = LatentDataModule(str(project.store), batch_size=8)
    loader = data.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        for batch in islice(loader, 5 if epoch == 0 else 1):
            noise, times, uniform = training_noise(0, epoch, batch["showing"].tolist(), batch["latent"].shape[1:], 1000)
            text = torch.where(uniform[:, None, None] < DROPOUT, model.null["text"], batch["text"]).double()
            noisy, _ = model.process.noised(batch["latent"].double(), noise.double(), times)
            momentum = BETA * momentum + (1 - BETA) * adjoint
            update = RATE * diagonal * momentum
            direction = direction + update
            asked = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                outputs = predicted(model, asked, noisy, times, text)
                adjoint = adjoint - torch.stack([2 / outputs.numel() * squared(outputs, asked, row) for row in update])
    return direction


def squared(outputs: Tensor, weights: dict[str, Tensor], vector: Tensor) -> Tensor:
    """``J^T J`` times a vector [P], ``J`` being the derivative of outputs, by derivatives of derivatives."""
    parts = vector.split([weight.numel() for weight in weights.values()])
    shaped = [part.view_as(weight) for part, weight in zip(parts, weights.values(), strict=True)]
    zero = torch.zeros_like(outputs).requires_grad_()
    back = torch.autograd.grad(outputs, list(weights.values()), zero, create_graph=True)
    (change,) = torch.autograd.grad(back, zero, shaped, retain_graph=True)
    product = torch.autograd.grad(outputs, list(weights.values()), change, retain_graph=True)
    return torch.cat([part.flatten() for part in product])


def test_directions_are_those_of_plain_loops(project: Project, straight: Path) -> None:
    found, expected = rows_of(straight).double(), plain_directions(project)
    for own, row in zip(found, expected, strict=True):
        assert (own - row).norm() < 1e-4 * row.norm()
    settings = read_header(straight / "directions.safetensors").settings
    assert (settings["steps"], settings["preconditioner"], settings["learning_rate"]) == (6, "optimizer", RATE)
    assert {"checkpoint", "store", "queries", "preconditioner"} == settings["digests"].keys()
    norms = curve(straight, "adjoint/norm")
    assert len(norms) == 6
    assert 0 < norms[-1][1] < norms[0][1]


def test_a_region_of_the_queries(project: Project, tmp_path: Path) -> None:
    white = np.zeros((64, 64), np.uint8)
    white[:32, 16:] = 255
    Image.fromarray(white).save(tmp_path / "region.png")
    asked_for = {"model__init_args__region": tmp_path / "region.png", "trainer__max_steps": 1}
    run_stage(virtual(project, tmp_path / "run", **asked_for))
    model, weights = in_double(project.checkpoint)
    queries, draws = Store(str(project.queries)), Draws(timesteps=3)
    latent = torch.from_numpy(queries.read("latent", [2])[0, :1]).double().expand(3, -1, -1, -1)
    text = torch.from_numpy(queries.read("text", [2])[0, :1]).double().expand(3, -1, -1)
    region = torch.zeros(latent.shape[-2:], dtype=torch.float64)
    region[: region.shape[0] // 2, region.shape[1] // 4 :] = 1
    noise, times = shared_noise(draws, [0, 1, 2], latent.shape[1:]).double(), draw_timesteps(draws, 1000)
    parameters = [model.network.get_parameter(name).requires_grad_() for name in weights]

    def gradient(region: Tensor | None) -> Tensor:
        loss = model.losses(latent, {"text": text}, times, noise, region).mean()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])

    # A single step is the gradient times a diagonal, which is the same for all.
    run_stage(virtual(project, tmp_path / "all", trainer__max_steps=1))
    found, everywhere = (rows_of(tmp_path / name)[2].double() for name in ("run", "all"))
    torch.testing.assert_close(found * gradient(None), everywhere * gradient(region), rtol=1e-3, atol=1e-12)
    assert not torch.allclose(found, everywhere)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "sends"),
    [(4, signal.SIGKILL), (6, signal.SIGTERM), (1, signal.SIGKILL)],
)
def test_stopped_and_resumed(
    project: Project, straight: Path, tmp_path: Path, moment: int, sends: signal.Signals
) -> None:
    args = virtual(project, tmp_path / "run")
    stopped_then_resumed(args, tmp_path / "log", Moment(STEP, moment, sends))
    assert_same(tmp_path / "run/directions.safetensors", straight / "directions.safetensors")


def test_more_steps_go_on_from_fewer(project: Project, straight: Path, tmp_path: Path) -> None:
    run_stage(virtual(project, tmp_path / "run", trainer__max_steps=3))
    few = rows_of(tmp_path / "run")
    run_stage(virtual(project, tmp_path / "run"))
    assert_same(tmp_path / "run/directions.safetensors", straight / "directions.safetensors")
    assert not torch.equal(few, rows_of(straight))


@pytest.mark.slow
def test_queries_do_not_depend_on_each_other(
    project: Project, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(virtual(project, tmp_path / "alone", model__init_args__query_ids="[3]"))
    run_stage(virtual(project, tmp_path / "two", model__init_args__query_ids="[4,3]"))
    monkeypatch.setattr(steps_back, "QUERY_BYTES", 1)  # then one at a time goes
    run_stage(virtual(project, tmp_path / "each"))
    together = rows_of(straight)
    for found, expected in [
        (rows_of(tmp_path / "alone"), together[[3]]),
        (rows_of(tmp_path / "two"), together[[4, 3]]),
        (rows_of(tmp_path / "each"), together),
    ]:
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.slow
def test_two_ranks(project: Project, straight: Path, tmp_path: Path) -> None:
    finish(virtual(project, tmp_path / "run", data__init_args__batch_size=4), tmp_path / "log")
    assert_close(tmp_path / "run/directions.safetensors", straight / "directions.safetensors", tolerance=1e-4)
    ours, theirs = (read_header(run / "directions.safetensors").settings for run in (tmp_path / "run", straight))
    assert ours == theirs


def directed(project: Project, run: Path, directions: str, **settings: Any) -> list[str]:
    method = {"class_path": "lightning_attr.methods.Directed", "init_args": {"directions": directions}}
    method["init_args"] |= {"output": {"draws": {"timesteps": 2}}}  # type: ignore[operator]
    defaults = {
        "model__init_args__method": json.dumps(method),
        "model__init_args__checkpoints": json.dumps([str(project.checkpoint)]),
        "trainer__logger": "false",
    }
    return project.args("similarity", run, **{**defaults, **settings})


def test_scores_are_products_with_the_samples_gradients(project: Project, straight: Path, tmp_path: Path) -> None:
    run_stage(directed(project, tmp_path / "run", str(straight / "directions.safetensors")))
    scores = Scores.load(tmp_path / "run/scores.safetensors")
    assert (scores.method, scores.scores.shape) == ("virtual-steps", (5, 40))
    model, weights = in_double(project.checkpoint)
    store, draws = Store(str(project.store)), Draws(timesteps=2)
    rows, timesteps = rows_of(straight).double(), draw_timesteps(draws, 1000)
    for place in (0, 17, 39):
        latent = torch.from_numpy(store.read("latent", [place])[0, :1]).double().expand(2, -1, -1, -1)
        text = torch.from_numpy(store.read("text", [place])[0, :1]).double().expand(2, -1, -1)
        noise = shared_noise(draws, [0, 1], latent.shape[1:]).double()
        noisy, target = model.process.noised(latent, noise, timesteps)
        asked = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        errors = predicted(model, asked, noisy, timesteps, text) - target.flatten(1)
        gradients = torch.autograd.grad(errors.square().mean(), list(asked.values()))
        expected = rows @ torch.cat([gradient.flatten() for gradient in gradients])
        torch.testing.assert_close(scores.scores[:, place].double(), expected, rtol=1e-3, atol=1e-9)


def test_some_queries_from_several_files(project: Project, straight: Path, tmp_path: Path) -> None:
    """And the best of each alone."""
    tensors, settings = load_tensors(straight / "directions.safetensors")
    for name, ids in (("a", [0, 1]), ("b", [4, 2, 3])):
        part = {key: value[ids] for key, value in tensors.items()}
        save_tensors(tmp_path / f"{name}.safetensors", "directions", part, {**settings, "query_ids": ids})
    run_stage(directed(project, tmp_path / "all", str(straight / "directions.safetensors")))
    pattern, some = str(tmp_path / "*.safetensors"), {"model__init_args__query_ids": "[3,0]"}
    run_stage(directed(project, tmp_path / "run", pattern, **some))
    expected = Scores.load(tmp_path / "all/scores.safetensors").scores[[3, 0]]
    torch.testing.assert_close(Scores.load(tmp_path / "run/scores.safetensors").scores, expected, rtol=1e-4, atol=1e-9)


def test_unlearned_weights_are_directions(project: Project, tmp_path: Path) -> None:
    """Where the step is small, the products are the loss deltas that a sweep measures."""
    step = {"trainer__callbacks": "[]", "trainer__max_steps": 1, "model__init_args__step_size": 2e-4}
    run_stage(project.args("unlearn", tmp_path / "unlearn", **step))
    path = str(tmp_path / "unlearn/weights.safetensors")
    one = {"model__init_args__query_ids": "[0]"}
    run_stage(directed(project, tmp_path / "run", path, **one))
    found = Scores.load(tmp_path / "run/scores.safetensors")
    assert found.method == "unlearning-direction"
    sweep = {"changed": path, "draws": {"timesteps": 2}}
    method = {"class_path": "lightning_attr.methods.Unlearning", "init_args": sweep}
    run_stage(directed(project, tmp_path / "sweep", path, model__init_args__method=json.dumps(method), **one))
    expected = Scores.load(tmp_path / "sweep/scores.safetensors").scores
    assert (found.scores - expected).norm() < 0.1 * expected.norm()
    assert torch.corrcoef(torch.cat([found.scores, expected]))[0, 1] > 0.99


def test_a_checkpoint_of_weights_alone(
    project: Project, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second moments are then those of gradients, and the learning rate is to be said."""
    bare = changed(project.checkpoint, tmp_path / "bare.ckpt", lambda checkpoint: checkpoint.pop("optimizer_states"))
    args = virtual(project, tmp_path / "run", model__init_args__checkpoint=bare)
    assert_says(refused(args), "model.learning_rate: found none", bare)
    rate = ["--model.init_args.learning_rate", "1e-3"]
    asked = [*args, *rate, "--model.init_args.preconditioner", "optimizer"]
    assert_says(refused(asked), "model.preconditioner", "no second moments", "cross_kv")
    monkeypatch.setattr(module, "BATCHES", 7)  # more than an epoch has
    run_stage([*args, *rate])
    settings = read_header(tmp_path / "run/directions.safetensors").settings
    assert settings["preconditioner"] == "gradients"
    model, weights = in_double(bare)
    data = LatentDataModule(str(project.store), batch_size=8)
    loader, squares = data.train_dataloader(), []
    for epoch in (2**20, 2**20 + 1):
        loader.sampler.set_epoch(epoch)
        for batch in islice(loader, 5 if epoch == 2**20 else 2):
            noise, times, uniform = training_noise(0, epoch, batch["showing"].tolist(), batch["latent"].shape[1:], 1000)
            text = torch.where(uniform[:, None, None] < DROPOUT, model.null["text"], batch["text"]).double()
            noisy, target = model.process.noised(batch["latent"].double(), noise.double(), times)
            asked_for = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            errors = predicted(model, asked_for, noisy, times, text) - target.flatten(1)
            gradients = torch.autograd.grad(errors.square().mean(), list(asked_for.values()))
            squares.append(torch.cat([gradient.flatten() for gradient in gradients]).square())
    diagonal = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]["diagonal"]
    selected = model.select("cross_kv")
    parts = dict(zip(selected, diagonal.split([weight.numel() for weight in selected.values()]), strict=True))
    found = torch.cat([parts[name] for name in weights]).double()
    torch.testing.assert_close(found, 1 / (torch.stack(squares).mean(0).sqrt() + 1e-8), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_stopped_while_second_moments_are_taken(project: Project, tmp_path: Path) -> None:
    settings = {"model__init_args__preconditioner": "gradients", "trainer__max_steps": 2}
    run_stage(virtual(project, tmp_path / "straight", **settings))
    for call in (3, 40):
        run = tmp_path / f"run-{call}"
        moment = Moment("lightning_attr.tasks.virtual_steps:loss_gradient", call, signal.SIGTERM)
        stopped_then_resumed(virtual(project, run, **settings), tmp_path / f"log-{call}", moment)
        assert_same(run / "directions.safetensors", tmp_path / "straight/directions.safetensors")


def test_ekfac_may_precondition(project: Project, ekfac: Path, tmp_path: Path) -> None:
    curvature = {"model__init_args__curvature": ekfac / "curvature.safetensors", "model__init_args__beta": 0}
    run_stage(
        virtual(project, tmp_path / "run", trainer__max_steps=1, model__init_args__learning_rate=0.5, **curvature)
    )
    plain = {"model__init_args__beta": 0, "trainer__max_steps": 1, "model__init_args__learning_rate": 1.0}
    run_stage(virtual(project, tmp_path / "plain", **plain))
    tensors, settings = load_tensors(tmp_path / "plain/directions.safetensors")
    assert settings["preconditioner"] == "optimizer"
    adam = adam_of(load(project.checkpoint))
    assert adam is not None
    gradients = {
        name: value / adam_diagonal(adam.second_moments[name]) for name, value in tensors.items() if name != "query_id"
    }
    expected = load_curvature(ekfac / "curvature.safetensors").inverse(gradients, Damping(0.1, "mean"))
    found, settings = load_tensors(tmp_path / "run/directions.safetensors")
    assert (settings["preconditioner"], "curvature" in settings["digests"]) == ("curvature", True)
    for name, value in expected.items():
        assert (found[name] - 0.5 * value).norm() < 1e-3 * value.norm()


def test_an_adjoint_that_grows(project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One warning; and the end where nothing is left of it."""
    run_stage(virtual(project, tmp_path / "run", model__init_args__learning_rate=1.0))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "times its first norm" in line]
    assert len(warnings) == 1
    assert_says(warnings[0], "warning: query", "lower model.learning_rate")


def test_refused(project: Project, straight: Path, tmp_path: Path, refused: Refused) -> None:
    def says(args: list[str], *words: object) -> None:
        assert_says(refused(args), *words)

    says(virtual(project, tmp_path / "run", model__init_args__learning_rate=1e30), "adjoint is not finite", "lower")
    says(virtual(project, tmp_path / "a", trainer__accumulate_grad_batches=2), "accumulate_grad_batches: found 2")
    says(virtual(project, tmp_path / "b", model__init_args__query_ids="[9]"), "found no sample 9")
    says(virtual(project, tmp_path / "c", data__init_args__store=project.val_store), "store of digest")
    fitted = {"model__init_args__curvature": project.curvature}
    says(virtual(project, tmp_path / "d", **fitted), "model.learning_rate: found none", "natural gradients")
    both = {**fitted, "model__init_args__preconditioner": "gradients"}
    says(virtual(project, tmp_path / "e", **both), "model.preconditioner: found gradients with a curvature")


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("checkpoint", ["found none of query 0", "was made from checkpoint another"]),
        ("store", ["made from store of digest another"]),
        ("queries", ["made from queries of digest another"]),
    ],
)
def test_directions_of_other_inputs_are_refused(
    project: Project, straight: Path, tmp_path: Path, refused: Refused, role: str, words: list[str]
) -> None:
    tensors, settings = load_tensors(straight / "directions.safetensors")
    settings["digests"][role] = "another"
    save_tensors(tmp_path / "directions.safetensors", "directions", tensors, settings)
    message = refused(directed(project, tmp_path / "run", str(tmp_path / "directions.safetensors")))
    assert_says(message, "directions.safetensors", *words)


def test_files_that_are_no_directions_are_refused(
    project: Project, straight: Path, tmp_path: Path, refused: Refused
) -> None:
    assert_says(
        refused(directed(project, tmp_path / "a", str(tmp_path / "none"))), "method.directions", "found no file"
    )
    message = refused(directed(project, tmp_path / "b", str(project.curvature)))
    assert_says(message, "found curvature, expected directions")
    tensors, settings = load_tensors(straight / "directions.safetensors")
    name = min(tensors)
    for place, spoilt in enumerate([
        {**tensors, name: tensors[name][:, :1]},
        {**tensors, "query_id": tensors["query_id"] + 1},
    ]):  # fmt: skip
        save_tensors(tmp_path / f"{place}.safetensors", "directions", spoilt, settings)
    assert_says(
        refused(directed(project, tmp_path / "c", str(tmp_path / "0.safetensors"))), f"found {name}", "expected"
    )
    message = refused(directed(project, tmp_path / "d", str(tmp_path / "1.safetensors")))
    assert_says(message, "found directions of queries [1, 2, 3, 4, 5]")
    some = {key: value[:1] for key, value in tensors.items()}
    save_tensors(tmp_path / "2.safetensors", "directions", some, {**settings, "query_ids": [0]})
    message = refused(directed(project, tmp_path / "e", str(tmp_path / "2.safetensors")))
    assert_says(message, "found none of query 1", "expected all 5")


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> FineTune:
    """A LoRA over a tiny pipeline, trained, and its queries."""
    tune = FineTune(tmp_path_factory.mktemp("tune"))
    run_stage(written(tune.root / "train.yaml", tune.train(tune.root / "train")))
    sampler = {
        "checkpoint": str(tune.root / "train/checkpoints/last.ckpt"), "store": str(tune.store),
        "prompts": ["a cat", "red dog"], "steps": 2, "guidance": 2.0,
    }  # fmt: skip
    content = {
        "trainer": {"default_root_dir": str(tune.root / "sample"), "accelerator": "cpu"},
        "model": {"class_path": "lightning_attr.tasks.Sampler", "init_args": sampler},
    }
    run_stage(written(tune.root / "sample.yaml", content))
    return tune


@pytest.mark.slow
@pytest.mark.parametrize("of", ["lora", "pipeline"])
def test_models_of_others(tune: FineTune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """A LoRA over its adapter's weights, with its optimizer; a pipeline over all of its matrices, without."""
    monkeypatch.setattr(module, "BATCHES", 2)
    checkpoint = tune.root / ("train/checkpoints/last.ckpt" if of == "lora" else "base")
    queries, own = tune.root / "sample/queries.lmdb", {} if of == "lora" else {"learning_rate": 1e-4}
    content = config(tmp_path / "run", checkpoint, queries, tune.store, **own)
    content["data"]["init_args"]["batch_size"] = 4
    run_stage(written(tmp_path / "run.yaml", content))
    tensors, settings = load_tensors(tmp_path / "run/directions.safetensors")
    model = load(checkpoint)
    if of == "lora":
        assert (settings["weights"], settings["preconditioner"], settings["learning_rate"]) == (
            "adapter", "optimizer", 1e-2,
        )  # fmt: skip
        assert tensors.keys() == {*model.denoiser.adapter, "query_id"}
    else:
        assert (settings["weights"], settings["preconditioner"]) == ("matrices", "gradients")
        assert any("conv_in" in name for name in tensors)
        assert not any("norm" in name for name in tensors)
    assert all(value.isfinite().all() for value in tensors.values())
    attribution = {
        "queries": str(queries), "checkpoints": [str(checkpoint)],
        "method": {
            "class_path": "lightning_attr.methods.Directed",
            "init_args": {
                "directions": str(tmp_path / "run/directions.safetensors"), "output": {"draws": {"timesteps": 2}},
            },
        },
    }  # fmt: skip
    content = {
        "trainer": {"default_root_dir": str(tmp_path / "scores"), "accelerator": "cpu", "logger": False},
        "model": {"class_path": "lightning_attr.tasks.Attribution", "init_args": attribution},
        "data": {"class_path": "datamodules.LatentDataModule", "init_args": {"store": str(tune.store)}},
    }
    run_stage(written(tmp_path / "scores.yaml", content))
    scores = Scores.load(tmp_path / "scores/scores.safetensors").scores
    assert scores.shape == (2, 10)
    assert (scores.std(1) > 0).all()


def test_the_optimizer_of_a_lora(tune: FineTune) -> None:
    """Its weights are in the checkpoint in the order of training's optimizer."""
    path = tune.root / "train/checkpoints/last.ckpt"
    checkpoint, adam = torch.load(path, weights_only=True), adam_of(load(path))
    assert adam is not None
    names = [name.removeprefix("denoiser.") for name in checkpoint["state_dict"]]
    state = checkpoint["optimizer_states"][0]["state"]
    assert list(adam.second_moments) == names
    assert len(names) == len(state)
    for place, name in enumerate(names):
        torch.testing.assert_close(adam.second_moments[name], state[place]["exp_avg_sq"] / (1 - 0.999**6))
