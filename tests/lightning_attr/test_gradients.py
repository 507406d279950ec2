"""Per-sample gradients against torch.func, in double precision."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from lightning_attr.denoisers import select_weights
from lightning_attr.diffusion import denoising_loss
from lightning_attr.gradients import functional_gradients, linear_gradients, linear_weights, per_sample_gradients

SCHEDULER = DDPMScheduler()


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return (
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=2,
        )
        .double()
        .eval()
        .requires_grad_(False)
    )


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latent, noise = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(3, 5, 12, generator=generator, dtype=torch.float64)
    return latent, text, torch.tensor([10, 400, 900]), noise


def loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    latent, text, timesteps, noise = batch
    return denoising_loss(network, SCHEDULER, latent, text, timesteps, noise)


@pytest.mark.parametrize("weights", ["cross_kv", "cross_attention", "attention"])
def test_hooks_equal_torch_func(network: UNet2DConditionModel, batch: tuple[Tensor, ...], weights: str) -> None:
    selected = select_weights(network, weights)
    linear = {name: weight for name, weight in selected.items() if linear_weights(network, {name: weight})}
    layers = linear_weights(network, linear)
    assert layers is not None
    found = linear_gradients(layers, lambda: loss(network, batch))
    expected = functional_gradients(network, linear, loss, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)


def test_any_weights_equal_one_backward_per_sample(network: UNet2DConditionModel, batch: tuple[Tensor, ...]) -> None:
    selected = select_weights(network, r"conv_in|norm_out|attn2\.to_k")
    found = per_sample_gradients(network, selected, loss, batch)
    for weight in selected.values():
        weight.requires_grad_()
    for index in range(len(batch[0])):
        one = tuple(part[index : index + 1] for part in batch)
        expected = torch.autograd.grad(loss(network, one).sum(), list(selected.values()))
        for name, gradient in zip(selected, expected, strict=True):
            torch.testing.assert_close(found[name][index], gradient, rtol=1e-10, atol=1e-14)
    network.requires_grad_(False)
