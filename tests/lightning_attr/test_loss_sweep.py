"""The loss sweep: the same losses whatever the batches, ranks or stops."""

from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flipped
from miniature import Project

from datamodules.store import Store
from lightning_attr.artifacts import save_tensors
from lightning_attr.errors import UserError
from lightning_attr.loss_sweep import LossSweep
from lightning_attr.models import Model, load
from lightning_attr.noise import Draws, batch_noise, draw_timesteps

DRAWS = Draws(timesteps=2)
SAMPLES = 40
SETTINGS = {"store": "a", "draws": vars(DRAWS)}


@pytest.fixture(scope="module")
def model(project: Project) -> Model:
    return load(project.checkpoint)


@pytest.fixture(scope="module")
def store(project: Project) -> Store:
    return Store(str(project.store))


def swept(sweep: LossSweep, model: Model, store: Store, **options: Any) -> None:
    sweep.run(model, store, DRAWS, **options)


def test_against_a_loop_over_samples(model: Model, store: Store, tmp_path: Path) -> None:
    sweep = LossSweep(tmp_path / "losses.safetensors", SETTINGS, SAMPLES, 2)
    assert sweep.cached() is None
    swept(sweep, model, store)
    losses = sweep.join()
    assert losses.shape == (40, 1, 2)
    for position in (0, 23):
        latent = torch.from_numpy(store.read("latent", [position]))[:, 0].float()
        texts = torch.from_numpy(store.read("text", [position]))[0].float()
        captions = int(store.caption_counts[position])
        for draw, timestep in enumerate(draw_timesteps(DRAWS, 1000)):
            noise = batch_noise(DRAWS, draw, latent.shape[1:], [int(store.ids[position])], 0, 0)
            with torch.no_grad():
                each = [model.losses(latent, {"text": text[None]}, timestep[None], noise) for text in texts[:captions]]
            torch.testing.assert_close(losses[position, 0, draw], torch.cat(each).mean(), rtol=1e-5, atol=1e-6)


def test_ranks_share_the_chunks_and_leave_nothing_else_behind(model: Model, store: Store, tmp_path: Path) -> None:
    whole, shared = (
        LossSweep(tmp_path / name / "losses.safetensors", SETTINGS, SAMPLES, 2) for name in ("whole", "shared")
    )
    swept(whole, model, store)
    counts = {0: 0, 1: 0}
    swept(shared, model, store, shard=(1, 2))
    with pytest.raises(UserError, match="run the same command again"):
        shared.join()
    for rank in counts:
        swept(
            shared, model, store, shard=(rank, 2), on_batch=lambda n, rank=rank: counts.update({rank: counts[rank] + n})
        )
    assert counts == {0: 24, 1: 16}
    assert torch.equal(shared.join(), whole.join())
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["losses.safetensors"]
    assert torch.equal(shared.join(), whole.join())  # joined by another run meanwhile


def test_chunks_of_other_settings_are_not_used(model: Model, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "losses.safetensors"
    swept(LossSweep(path, SETTINGS, SAMPLES, 2), model, store)
    other = LossSweep(path, {**SETTINGS, "store": "b"}, SAMPLES, 2)
    with pytest.raises(UserError, match="of another run"):
        other.join()
    swept(other, model, store)
    other.join()
    assert other.cached() is not None
    assert LossSweep(path, SETTINGS, SAMPLES, 2).cached() is None
    assert LossSweep(path, SETTINGS, SAMPLES, 2).differs()


def test_a_window_of_timesteps(model: Model, store: Store, tmp_path: Path) -> None:
    """Its two numbers are a tuple in the settings, but a list in the file."""
    window = Draws(timesteps=1, window=(100, 200))
    sweep = LossSweep(tmp_path / "losses.safetensors", {"draws": vars(window)}, SAMPLES, 40)
    sweep.run(model, store, window)
    losses = sweep.join()
    again = sweep.cached()
    assert again is not None
    assert torch.equal(again, losses)


def test_a_damaged_file_is_measured_again(
    model: Model, store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The joined losses, and a part of them; not a file of something else."""
    sweep = LossSweep(tmp_path / "losses.safetensors", SETTINGS, SAMPLES, 2)
    swept(sweep, model, store)
    part = sorted(tmp_path.glob("*.chunks/*"))[1]
    flipped(part, part, 0.9)
    swept(sweep, model, store)
    assert f"{part}: damaged" in capfd.readouterr().err
    losses = sweep.join()
    flipped(sweep.path, sweep.path, 0.9)
    assert sweep.cached() is None
    assert f"{sweep.path}: damaged" in capfd.readouterr().err
    swept(sweep, model, store)
    assert torch.equal(sweep.join(), losses)
    save_tensors(sweep.path, "curvature", {"losses": losses}, SETTINGS)
    with pytest.raises(UserError, match="found curvature, expected losses"):
        sweep.cached()
