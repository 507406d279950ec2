"""The way back through a training as it was: against autograd through plain steps, resumed, refused."""

from __future__ import annotations

import json
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Refused, assert_says
from miniature import Project
from stopped import Moment
from test_resume import TASKS, assert_same, stopped_then_resumed
from test_virtual_steps_fit import config, directed, in_double, predicted, rows_of, written
from tiny_finetunes import FineTune
from torch import Tensor

from datamodules import LatentDataModule, Store
from lightning_attr.artifacts import load_tensors, read_header
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import main, run_stage
from lightning_attr.models import load
from lightning_attr.noise import Draws, draw_timesteps, shared_noise, training_noise
from lightning_attr.trajectory import Step, path_of

STEPS, LAST = 4, 12
AVERAGE, DECAY = 0.8, 0.05
SOME = r"attentions.*attn2\.to_[kv]\.weight|conv_in\.weight|conv_out\.bias"


def trained(project: Project, run: Path, **settings: Any) -> list[str]:
    """The project's training, with weight decay: clipped, with an average, its last steps of two epochs."""
    callbacks = [
        {"class_path": "callbacks.EMA", "init_args": {"decay": AVERAGE}},
        {"class_path": "callbacks.Trajectory", "init_args": {"steps": STEPS}},
    ]
    own = {"trainer__callbacks": json.dumps(callbacks), "model__init_args__weight_decay": DECAY}
    return project.args("train", run, **{**own, "trainer__gradient_clip_val": 0.2, **settings})


def replayed(project: Project, trajectory: Path, run: Path, **settings: Any) -> list[str]:
    own = {"trajectory": str(trajectory), "weights": SOME, "products": "hessian"}
    content = config(run, trajectory / "checkpoints/last.ckpt", project.queries, project.store, **own)
    content["model"]["class_path"] = "lightning_attr.tasks.ReplayedSteps"
    content["trainer"]["max_steps"] = STEPS
    return written(run.with_name(f"{run.name}.yaml"), content, **settings)


@pytest.fixture(scope="module")
def trajectory(project: Project) -> Path:
    run_stage(trained(project, project.root / "trajectory"))
    return project.root / "trajectory"


@pytest.fixture(scope="module")
def straight(project: Project, trajectory: Path) -> Path:
    """Without a stop."""
    run_stage(replayed(project, trajectory, project.root / "replayed"))
    return project.root / "replayed"


def test_only_the_last_steps_are_kept(trajectory: Path) -> None:
    assert sorted(path.stem for path in (trajectory / "trajectory").iterdir()) == [
        path_of(trajectory, number).stem for number in range(LAST - STEPS + 1, LAST + 1)
    ]


def test_a_step_is_what_training_did(trajectory: Path) -> None:
    """From one step's weights to the next one's, and from the last to the checkpoint's own."""
    checkpoint = torch.load(trajectory / "checkpoints/last.ckpt", weights_only=True)
    own = {name.removeprefix("denoiser."): value for name, value in checkpoint["current_model_state"].items()}
    step, state = Step.load(trajectory, LAST), checkpoint["optimizer_states"][0]["state"]
    assert (step.kept, step.average) == (1 - 1e-3 * DECAY, AVERAGE)
    assert 0 < step.clipped < 1
    trained = [name for name in own if name in step.weights]  # in the order of the optimizer
    assert len(trained) == len(step.weights) == len(state)
    for place, name in enumerate(trained):
        moved = step.kept * step.weights[name] - step.rates[name] * state[place]["exp_avg"]
        torch.testing.assert_close(moved, own[name], rtol=1e-5, atol=1e-8)


def derivatives(project: Project, trajectory: Path) -> Tensor:
    """How the queries' losses move with a gradient more at every step, in double precision, by autograd: [Q, P]."""
    model, _ = in_double(trajectory / "checkpoints/last.ckpt")
    steps = [Step.load(trajectory, number) for number in range(LAST - STEPS + 1, LAST + 1)]
    batches = {}
    loader = LatentDataModule(str(project.store), batch_size=8).train_dataloader()
    for epoch in {step.epoch for step in steps}:
        loader.sampler.set_epoch(epoch)
        batches.update({(epoch, place): batch for place, batch in enumerate(islice(loader, 5))})

    def loss(weights: dict[str, Tensor], step: Step) -> Tensor:
        batch = batches[step.epoch, step.batch]
        showing, shape = batch["showing"].tolist(), batch["latent"].shape[1:]
        noise, times, uniform = training_noise(0, step.epoch, showing, shape, 1000)
        text = torch.where(uniform[:, None, None] < 0.1, model.null["text"], batch["text"]).double()
        noisy, target = model.process.noised(batch["latent"].double(), noise.double(), times)
        all_weights = {**{name: value.double() for name, value in step.weights.items()}, **weights}
        return (predicted(model, all_weights, noisy, times, text) - target.flatten(1)).square().mean()

    names = sorted(model.select(SOME))
    end = {name: weight.detach() for name, weight in model.network.named_parameters() if name in names}
    queries, draws = Store(str(project.queries)), Draws(timesteps=3)
    noise, timesteps = shared_noise(draws, [0, 1, 2], (4, 8, 8)).double(), draw_timesteps(draws, 1000)
    gradients = []
    for query in range(5):
        latent = torch.from_numpy(queries.read("latent", [query])[0, :1]).double().expand(3, -1, -1, -1)
        text = torch.from_numpy(queries.read("text", [query])[0, :1]).double().expand(3, -1, -1)
        noisy, target = model.process.noised(latent, noise, timesteps)
        asked = {name: end[name].clone().requires_grad_() for name in names}
        errors = predicted(model, asked, noisy, timesteps, text) - target.flatten(1)
        gradients.append(torch.autograd.grad(errors.square().mean(), list(asked.values())))

    more = [torch.zeros_like(end[name]).requires_grad_() for name in names]
    weights = [steps[0].weights[name].double() for name in names]
    average, mean = ([torch.zeros_like(each) for each in weights] for _ in range(2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for step in steps:
            # The values are those of the training, what depends on ``more`` goes on through them.
            weights = [
                step.weights[name].double() + each - each.detach() for name, each in zip(names, weights, strict=True)
            ]
            if not weights[0].requires_grad:
                weights = [each.requires_grad_() for each in weights]
            of_batch = torch.autograd.grad(
                loss(dict(zip(names, weights, strict=True)), step), weights, create_graph=True
            )
            for place, name in enumerate(names):
                gradient = step.clipped * (of_batch[place] + more[place])
                mean[place] = step.beta * mean[place] + (1 - step.beta) * gradient
                weights[place] = step.kept * weights[place] - step.rates[name].double() * mean[place]
                average[place] = AVERAGE * average[place] + (1 - AVERAGE) * weights[place]
    rows = []
    for of_query in gradients:
        moved = sum((one * other).sum() for one, other in zip(of_query, average, strict=True))
        assert isinstance(moved, Tensor)
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(moved, more, retain_graph=True)]))
    return torch.stack(rows)


def test_directions_are_the_derivative_of_training(
    project: Project, trajectory: Path, straight: Path, tmp_path: Path
) -> None:
    expected, found = -derivatives(project, trajectory), rows_of(straight).double()
    for own, row in zip(found, expected, strict=True):
        assert (own - row).norm() < 1e-5 * row.norm()
    settings = read_header(straight / "directions.safetensors").settings
    assert (settings["distance"], settings["steps"], settings["products"]) == (0, STEPS, "hessian")
    assert {"checkpoint", "store", "queries", "trajectory"} == settings["digests"].keys()
    run_stage(replayed(project, trajectory, tmp_path / "run", model__init_args__products="gauss_newton"))
    other = rows_of(tmp_path / "run").double()
    assert 1e-3 < (other - expected).norm() / expected.norm() < 0.2


@pytest.mark.slow
def test_stopped_and_resumed(project: Project, trajectory: Path, straight: Path, tmp_path: Path) -> None:
    """Both the training, in the middle of the steps that are kept, and the way back."""
    moment = Moment(f"{TASKS}LatentDiffusion.training_step", LAST - 1, signal.SIGKILL)
    stopped_then_resumed(trained(project, tmp_path / "train"), tmp_path / "log", moment)
    for path in sorted((trajectory / "trajectory").iterdir()):
        assert_same(tmp_path / "train/trajectory" / path.name, path)
    moment = Moment("lightning_attr.tasks.replayed_steps:ReplayedSteps.training_step", 3, signal.SIGKILL)
    stopped_then_resumed(replayed(project, trajectory, tmp_path / "run"), tmp_path / "log2", moment)
    assert_same(tmp_path / "run/directions.safetensors", straight / "directions.safetensors")


def test_scores(project: Project, trajectory: Path, straight: Path, tmp_path: Path) -> None:
    model = {"model__init_args__checkpoints": json.dumps([str(trajectory / "checkpoints/last.ckpt")])}
    run_stage(directed(project, tmp_path / "run", str(straight / "directions.safetensors"), **model))
    scores = Scores.load(tmp_path / "run/scores.safetensors")
    assert (scores.method, scores.scores.shape) == ("replayed-steps", (5, 40))
    assert (scores.scores.std(1) > 0).all()


@pytest.mark.slow
def test_another_training_is_told_by_its_end(
    project: Project, trajectory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_stage(trained(project, tmp_path / "other", model__init_args__seed=1, trainer__max_steps=6))
    capfd.readouterr()
    one = {"model__init_args__trajectory": tmp_path / "other", "trainer__max_steps": 1}
    run_stage(replayed(project, trajectory, tmp_path / "run", **one))
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert_says(warnings[0], "its weights end 1", "of their length away", "expected 0")
    assert read_header(tmp_path / "run/directions.safetensors").settings["distance"] > 0.9


def test_an_adjoint_that_grows_is_refused(
    project: Project, trajectory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(LAST - STEPS + 1, LAST + 1):
        step = Step.load(trajectory, number)
        rates = {name: 1e5 * rate for name, rate in step.rates.items()}
        Step(**{**vars(step), "rates": rates}).save(tmp_path / "wild", number)
    (tmp_path / "wild/checkpoints").symlink_to(trajectory / "checkpoints")
    args = replayed(project, trajectory, tmp_path / "run", model__init_args__trajectory=tmp_path / "wild")
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 1
    message = capfd.readouterr().err.splitlines()[-1]
    assert_says(message, "error: query", "times its first norm", "its direction says nothing", "fewer")
    assert not (tmp_path / "run/directions.safetensors").exists()


@pytest.mark.slow
def test_a_lora(tmp_path: Path) -> None:
    """Over its adapter's weights; one step back is the queries' gradients, times what the step made of them."""
    tune = FineTune(tmp_path)
    kept = {"callbacks": [{"class_path": "callbacks.Trajectory", "init_args": {"steps": 9}}]}
    run_stage(written(tmp_path / "train.yaml", tune.train(tmp_path / "train", kept)))
    content = config(tmp_path / "run", tmp_path / "train/checkpoints/last.ckpt", tune.store, tune.store)
    content["model"]["class_path"] = "lightning_attr.tasks.ReplayedSteps"
    content["model"]["init_args"] |= {"trajectory": str(tmp_path / "train"), "query_ids": [2]}
    content["data"]["init_args"]["batch_size"] = 4
    run_stage(written(tmp_path / "run.yaml", {**content, "trainer": {**content["trainer"], "max_steps": 1}}))
    found, settings = load_tensors(tmp_path / "run/directions.safetensors")
    model, step, draws = (
        load(tmp_path / "train/checkpoints/last.ckpt"),
        Step.load(tmp_path / "train", 6),
        Draws(timesteps=3),
    )
    assert (settings["weights"], settings["distance"], step.average, step.clipped) == ("adapter", 0, 0, 1)
    selected = {name: weight.requires_grad_() for name, weight in model.select("adapter").items()}
    assert found.keys() == {*selected, "query_id"}
    latent, text = (torch.from_numpy(Store(tune.store).read(name, [2])[0, :1]) for name in ("latent", "text"))
    noise = torch.cat([shared_noise(draws, [draw], latent.shape[1:]) for draw in range(3)])
    conditions = {"text": text.expand(3, -1, -1)}
    loss = model.losses(latent.expand(3, -1, -1, -1), conditions, draw_timesteps(draws, 1000), noise).mean()
    for name, gradient in zip(selected, torch.autograd.grad(loss, list(selected.values())), strict=True):
        expected = (1 - step.beta) * step.rates[name] * gradient
        torch.testing.assert_close(found[name][0], expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max() + 1e-9))


@pytest.mark.slow
def test_refused(project: Project, trajectory: Path, straight: Path, tmp_path: Path, refused: Refused) -> None:
    def says(args: list[str], *words: object) -> None:
        assert_says(refused(args), *words)

    def back(name: str, **settings: Any) -> list[str]:
        return replayed(project, trajectory, tmp_path / name, **settings)

    says(back("a", trainer__max_steps=5), "trajectory/00000008.safetensors: no such file", "trainer.max_steps")
    says(back("b", trainer__max_steps=13), "trainer.max_steps: found 13, expected 1 to 12")
    says(back("c", data__init_args__batch_size=4), "data: found batch_size 4, expected 8 as in")
    says(back("d", data__init_args__seed=1), "data: found seed 1, expected 0 as in")
    says(back("e", data__init_args__store=project.val_store), "store of digest")
    says(back("f", model__init_args__trajectory=project.root / "train"), "found no steps in trajectory/")
    says(trained(project, tmp_path / "g", trainer__accumulate_grad_batches=2), "accumulate_grad_batches: found 2")
    spoilt = tmp_path / "spoilt"
    (spoilt / "trajectory").mkdir(parents=True)
    (spoilt / "checkpoints").symlink_to(trajectory / "checkpoints")
    data = bytearray(path_of(trajectory, LAST).read_bytes())
    data[-1] ^= 1
    path_of(spoilt, LAST).write_bytes(data)
    says(back("h", model__init_args__trajectory=spoilt), "00000012.safetensors", "damaged")
    path_of(spoilt, LAST).write_bytes((straight / "directions.safetensors").read_bytes())
    says(back("i", model__init_args__trajectory=spoilt), "found replayed directions, expected training step")
