"""Loss deltas along directions: against a plain loop, against the product, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Refused, assert_says
from miniature import Project
from torch import Tensor

from datamodules import Store
from datamodules.loading import whole_samples
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.methods import Measured
from lightning_attr.models import load
from lightning_attr.noise import Draws, draw_timesteps, shared_noise

DRAWS = Draws(timesteps=3)


@pytest.fixture(scope="module")
def directions(project: Project) -> Path:
    """Those of three queries by virtual steps."""
    run = project.root / "measured-virtual"
    content: dict[str, Any] = {
        "trainer": {"default_root_dir": str(run), "accelerator": "cpu", "max_steps": 2, "logger": False},
        "model": {
            "class_path": "lightning_attr.tasks.VirtualSteps",
            "init_args": {
                "checkpoint": str(project.checkpoint),
                "queries": str(project.queries),
                "query_ids": [0, 1, 3],
                "draws": {"timesteps": 3},
            },
        },
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(project.store), "batch_size": 8},
        },
    }
    config = project.root / "measured-virtual.yaml"
    config.write_text(json.dumps(content))
    run_stage(["fit", "-c", str(config)])
    return run / "directions.safetensors"


def scored(project: Project, run: Path, method: str, directions: Path, **own: Any) -> list[str]:
    arguments = {"directions": str(directions), **own}
    if method == "Measured":
        arguments["draws"] = {"timesteps": 3}
    else:
        arguments["output"] = {"draws": {"timesteps": 3}}
    return project.args(
        "similarity",
        run,
        model__init_args__method=json.dumps({"class_path": f"lightning_attr.methods.{method}", "init_args": arguments}),
        model__init_args__checkpoints=json.dumps([str(project.checkpoint)]),
        model__init_args__query_ids="[3,0]",
        trainer__logger="false",
    )


class Plain:
    """Losses by loops that a reader can follow, in double precision."""

    def __init__(self, project: Project, directions: Path) -> None:
        self.model = load(project.checkpoint)
        self.model.network.double().eval()
        self.weights = dict(self.model.network.named_parameters())
        self.original = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.tensors, settings = load_tensors(directions)
        self.ids = settings["query_ids"]

    @torch.no_grad()
    def losses(self, store: str, count: int, query: int, move: float) -> Tensor:
        """The losses [N] of the first so many samples, where the weights have moved along a query's direction."""
        for name, row in self.tensors.items():
            if name != "query_id":
                self.weights[name].copy_(self.original[name] + move * row[self.ids.index(query)].double())
        whole = whole_samples(Store(store), list(range(count)))
        latents, texts = whole["latent"][:, 0].double(), whole["text"][:, 0].double()
        timesteps = draw_timesteps(DRAWS, 1000)
        noises = shared_noise(DRAWS, list(range(len(DRAWS))), latents.shape[1:]).double()
        total = torch.zeros(count, dtype=torch.float64)
        for timestep, noise in zip(timesteps, noises, strict=True):
            at, all_noise = timestep.expand(count), noise.expand(latents.shape)
            noisy, target = self.model.process.noised(latents, all_noise, at)
            predicted = self.model.predict(noisy, at, {"text": texts})
            total += (predicted - target).square().flatten(1).mean(1)
        return total / len(DRAWS)

    def move(self, queries: str, query: int, rise: float) -> float:
        """Where the query's loss has risen by a share, to a thousandth of the move."""
        before = float(self.losses(queries, query + 1, query, 0)[query])
        low, high = 0.0, 1e-6
        while float(self.losses(queries, query + 1, query, high)[query]) < (1 + rise) * before:
            low, high = high, 2 * high
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            risen = float(self.losses(queries, query + 1, query, middle)[query]) >= (1 + rise) * before
            low, high = (low, middle) if risen else (middle, high)
        return high


def test_scores_are_the_loss_deltas_of_plain_loops(project: Project, directions: Path, tmp_path: Path) -> None:
    run_stage(scored(project, tmp_path / "run", "Measured", directions, rise=0.2))
    found = Scores.load(tmp_path / "run/scores.safetensors")
    assert (found.method, found.query_id.tolist()) == ("virtual-steps-measured", [3, 0])
    plain = Plain(project, directions)
    for place, query in enumerate([3, 0]):
        move = plain.move(str(project.queries), query, 0.2)
        before, after = (plain.losses(str(project.store), 40, query, length) for length in (0.0, move))
        expected = after - before
        # The move is found to a fiftieth.
        assert (found.scores[place].double() - expected).norm() < 0.05 * expected.norm()
        assert torch.corrcoef(torch.stack([found.scores[place].double(), expected]))[0, 1] > 0.999


def test_a_small_rise_gives_the_products_of_directed(project: Project, directions: Path, tmp_path: Path) -> None:
    """But for a factor of each query; a large one does not."""
    run_stage(scored(project, tmp_path / "product", "Directed", directions))
    products = Scores.load(tmp_path / "product/scores.safetensors").scores.double()

    def cosines(rise: float) -> Tensor:
        run_stage(scored(project, tmp_path / str(rise), "Measured", directions, rise=rise))
        deltas = Scores.load(tmp_path / str(rise) / "scores.safetensors").scores.double()
        return torch.cosine_similarity(deltas, products)

    near, far = cosines(0.005), cosines(3.0)
    assert (near > 0.999).all()
    assert (far < 0.997).all()


def test_the_weights_are_the_models_again(project: Project, directions: Path) -> None:
    """After a failure as well."""
    model, before = load(project.checkpoint), load(project.checkpoint).network.state_dict()
    name = min(before)
    method = Measured(str(directions))
    method._parameters = dict(model.network.named_parameters())

    @torch.no_grad()
    def fail() -> None:
        with method.changed_to({name: before[name] + 1}):
            assert not model.network.state_dict()[name].equal(before[name])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(value.equal(before[name]) for name, value in model.network.state_dict().items())


def test_refused(project: Project, directions: Path, tmp_path: Path, refused: Refused) -> None:
    tensors, settings = load_tensors(directions)
    none = {name: value if name == "query_id" else value * 0 for name, value in tensors.items()}
    save_tensors(tmp_path / "none.safetensors", "directions", none, settings)
    message = refused(scored(project, tmp_path / "a", "Measured", tmp_path / "none.safetensors"))
    assert_says(message, "none.safetensors: the loss of query 3 does not rise by 0.1 of itself along its direction")
    message = refused(scored(project, tmp_path / "b", "Measured", directions, rise=0))
    assert_says(message, "method.rise: found 0", "expected 0.001 to 1000")
    message = refused(scored(project, tmp_path / "c", "Measured", tmp_path / "*.nothing"))
    assert_says(message, "method.directions", "found no file")
