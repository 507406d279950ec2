"""A network and a batch of samples that are small enough for plain loops in double precision."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from lightning_attr.models import Diffusion, Model
from lightning_attr.models.unet import UNet

SCHEDULER = DDPMScheduler()


def small_network() -> UNet2DConditionModel:
    """A UNet with cross-attention in three places, float64 and frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DConditionModel(
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
    return network.double().eval().requires_grad_(False)


def model_of(network: nn.Module) -> Model:
    """The network as a model that predicts the noise."""
    return Model(UNet(network), Diffusion({}), {"text": torch.zeros(5, 12).double()})


def small_batch(ids: list[int], views: int = 2, captions: int = 2) -> dict[str, Tensor]:
    """Random samples, float64; those with odd ids have one caption, and noise in place of the others."""
    generator = torch.Generator().manual_seed(sum(ids))
    return {
        "id": torch.tensor(ids),
        "latent": torch.randn(len(ids), views, 4, 8, 8, generator=generator, dtype=torch.float64),
        "text": torch.randn(len(ids), captions, 5, 12, generator=generator, dtype=torch.float64),
        "captions": torch.tensor([1 if sample % 2 else captions for sample in ids]),
    }
