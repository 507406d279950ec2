"""The published networks of each family, built without memory: what they are given, and what a name selects."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_attr.models.families import unfilled

SDXL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 128, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "in_channels": 16, "out_channels": 16, "joint_attention_dim": 4096,
    "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True,
}  # fmt: skip
PIXART: dict[str, Any] = {
    "_class_name": "PixArtTransformer2DModel", "sample_size": 128, "num_layers": 28, "attention_head_dim": 72,
    "num_attention_heads": 16, "in_channels": 4, "out_channels": 8, "cross_attention_dim": 1152,
    "caption_channels": 4096,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "conditions", "latent", "millions", "cross_kv"),
    [
        (SD15, {"text": (None, 768)}, (4, 64, 64), 860, 16),
        (SDXL, {"text": (None, 2048), "pooled": (1280,), "time_ids": (6,)}, (4, 128, 128), 2567, 70),
        (SD3, {"text": (None, 4096), "pooled": (2048,)}, (16, 128, 128), 2028, 24),
        (FLUX, {"text": (None, 4096), "pooled": (768,)}, (16, 128, 128), 11901, 19),
        (PIXART, {"text": (None, 4096), "mask": (None,)}, (4, 128, 128), 611, 28),
    ],
    ids=["sd15", "sdxl", "sd3", "flux", "pixart"],
)
def test_a_published_network(
    config: dict[str, Any], conditions: dict[str, Any], latent: tuple[int, ...], millions: int, cross_kv: int
) -> None:
    model = unfilled(config, {})
    assert dict(model.denoiser.conditions) == conditions
    assert model.latent_shape == latent
    assert round(sum(weight.numel() for weight in model.network.parameters()) / 1e6) == millions
    weights = [name for name in model.select("cross_kv") if name.endswith(".weight")]
    assert len(weights) == 2 * cross_kv  # keys and values of each layer
