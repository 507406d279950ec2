"""Denoisers: built from configs, read from checkpoints, their weights selected."""

from pathlib import Path

import pytest
import torch
from miniature import DENOISER, Project

from lightning_attr.denoisers import build_denoiser, build_scheduler, load_trained, load_weights, select_weights
from lightning_attr.errors import UserError


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build_denoiser(DENOISER, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second, other = (build_denoiser(DENOISER, seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_classes_of_diffusers_by_name() -> None:
    assert type(build_scheduler({"_class_name": "DDIMScheduler"})).__name__ == "DDIMScheduler"
    with pytest.raises(UserError, match="NoScheduler"):
        build_scheduler({"_class_name": "NoScheduler"})
    with pytest.raises(UserError, match=r"prediction_type: found 'sample', expected epsilon or v_prediction"):
        build_scheduler({"prediction_type": "sample"})


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("cross_kv", {"attn2.to_k", "attn2.to_v"}),
        ("cross_attention", {"attn2.to_k", "attn2.to_v", "attn2.to_q", "attn2.to_out"}),
        (r"attn1\.to_q", {"attn1.to_q"}),
    ],
)
def test_selection(pattern: str, names: set[str]) -> None:
    selected = select_weights(build_denoiser(DENOISER, seed=0), pattern)
    assert {".".join(name.split("transformer_blocks.0.")[1].split(".")[:2]) for name in selected} == names


def test_all_selects_everything() -> None:
    network = build_denoiser(DENOISER, seed=0)
    assert select_weights(network, "all").keys() == dict(network.named_parameters()).keys()


def test_a_checkpoint_gives_the_average_and_all_that_sampling_needs(project: Project) -> None:
    trained = load_trained(project.checkpoint)
    checkpoint = torch.load(project.checkpoint, weights_only=True)
    for name, weight in trained.denoiser.state_dict().items():
        assert torch.equal(weight, checkpoint["state_dict"][f"denoiser.{name}"])
    assert not trained.denoiser.training
    assert trained.latent_shape == (4, 8, 8)
    assert trained.null_text.shape == (6, 16)
    assert trained.configs["denoiser"] == DENOISER


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    network, other = build_denoiser(DENOISER, 0), build_denoiser({**DENOISER, "block_out_channels": [8, 24]}, 0)
    with pytest.raises(UserError, match=r"file\.ckpt: of another architecture: found down_blocks.*expected"):
        load_weights(network, other.state_dict(), "file.ckpt")
    weights = network.state_dict()
    weights.pop("conv_in.bias")
    with pytest.raises(UserError, match=r"found conv_in\.bias missing, expected \(8,\)"):
        load_weights(network, weights, "file.ckpt")
