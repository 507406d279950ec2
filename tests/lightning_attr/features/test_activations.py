"""Activations of a denoiser, against a plain forward pass with a hook."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from damage import Refused
from diffusers import DDPMScheduler
from miniature import Project

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.errors import UserError
from lightning_attr.features import Activations
from lightning_attr.models import load
from lightning_attr.noise import Draws, shared_noise


def test_a_layer_averaged_over_places(project: Project) -> None:
    store = Store(project.store)
    batch = whole_samples(store, np.arange(3))
    feature = Activations(str(project.checkpoint), "down_blocks.0.attentions.0", timestep=300, seed=5)
    found = feature.to(torch.device("cpu")).rows(store, batch)
    model = load(project.checkpoint)
    noise = shared_noise(Draws(seed=5), [0], model.latent_shape)[0]
    alpha = DDPMScheduler().alphas_cumprod[300]
    outputs: list[Any] = []
    layer = model.network.get_submodule("down_blocks.0.attentions.0")
    layer.register_forward_hook(lambda *call: outputs.append(call[2][0]))
    for sample, view in np.ndindex(*batch["latent"].shape[:2]):
        noisy = alpha.sqrt() * batch["latent"][sample, view].float() + (1 - alpha).sqrt() * noise
        outputs.clear()
        with torch.no_grad():
            model.network(noisy[None], torch.tensor([300]), model.null["text"][None])
        torch.testing.assert_close(found[sample, view], outputs[0].mean((2, 3))[0], atol=1e-5, rtol=1e-4)


def test_as_a_similarity_through_the_command_line(project: Project, tmp_path: Any) -> None:
    args = project.args(
        "similarity",
        tmp_path,
        model__init_args__method__init_args__feature="lightning_attr.features.Activations",
        model__init_args__method__init_args__feature__init_args__checkpoint=project.checkpoint,
        model__init_args__method__init_args__feature__init_args__layer="conv_in",
    )
    run_stage(args)
    scores = Scores.load(tmp_path / "scores.safetensors")
    assert scores.method == "similarity-conv_in-100"
    assert scores.settings["feature"]["weights"] == load(project.checkpoint).digest
    assert 0.5 < float(scores.scores.max()) <= 1 + 1e-5
    assert float(scores.scores.std()) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"layer": "nose"}, "feature.layer: found 'nose'"), ({"timestep": 1000}, "feature.timestep: found 1000")],
)
def test_what_the_model_lacks_is_refused(project: Project, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Activations(str(project.checkpoint), **arguments).to(torch.device("cpu"))


def test_a_feature_that_is_none_is_refused(project: Project, tmp_path: Any, refused: Refused) -> None:
    name = "lightning_attr.features.Smell"
    message = refused(project.args("similarity", tmp_path / "run", model__init_args__method__init_args__feature=name))
    assert name in message
    assert "Activations, Latent, Onnx, Pixel, Text, Vision" in message
