"""Print how many bytes gradient methods hold of a query and of a sample, of networks of real sizes without weights.

    python -m tools.held

Networks are built on the device ``meta``, which takes no memory; those of families that are not known are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from rich.table import Table

from lightning_attr.console import print_table, run
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output
from lightning_attr.methods import GradientSimilarity, Trak
from lightning_attr.methods.gradient_method import GradientMethod
from lightning_attr.methods.held import held
from lightning_attr.methods.influence import Influence
from lightning_attr.models import Model
from lightning_attr.models.families import unfilled
from lightning_attr.noise import Draws
from tools.benchmark.case import mscoco_config

RANK, TOKENS = 16, 77
OUTPUT = Output(draws=Draws(10))
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]
DIFFUSION: Mapping[str, Any] = {"num_train_timesteps": 1000}

#: What the released models say in their ``config.json``, where it is not what diffusers takes for granted.
SIZES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "mscoco": (mscoco_config(), DIFFUSION),
    "SD 1.5": ({"sample_size": 64, "cross_attention_dim": 768}, DIFFUSION),
    "SDXL": (
        {
            "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        DIFFUSION,
    ),
    "SD 3 medium": (
        {
            "_class_name": "SD3Transformer2DModel", "sample_size": 128, "num_layers": 24, "num_attention_heads": 24,
            "caption_projection_dim": 1536, "pos_embed_max_size": 192,
        },
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    ),
    "FLUX dev": (
        {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    ),
    "PixArt": ({"_class_name": "PixArtTransformer2DModel", "caption_channels": 4096}, DIFFUSION),
}  # fmt: skip


def networks() -> Iterator[tuple[str, str, Model]]:
    """Yield names, weights and models: of each size its attention, then a LoRA on it."""
    peft: Any = import_module("peft")
    for name, (config, scheduler) in SIZES.items():
        try:
            model = unfilled(config, scheduler)
        except UserError:
            continue
        yield name, "attention", model
        lora = peft.LoraConfig(r=RANK, target_modules=ADAPTED)
        peft.inject_adapter_in_model(lora, model.network, low_cpu_mem_usage=True)
        yield name, r"\.lora_[AB]\.", model


def methods(weights: str) -> Iterator[tuple[str, GradientMethod]]:
    """Yield the methods as their shipped configs have them, with some weights."""
    influence = Influence.__new__(Influence)  # of a curvature that is not fitted
    GradientMethod.__init__(influence, OUTPUT, weights, captions=None, per_draw=True)
    yield "EK-FAC per draw", influence
    yield "gradient dot", GradientSimilarity(output=OUTPUT, weights=weights)
    yield "TRAK, D-TRAK", Trak(output=OUTPUT, weights=weights)


def main() -> None:
    """Print the table."""
    table = Table("network", "weights", "method", "MB a query", "MB a sample", title="held", title_justify="left")
    for name, weights, model in networks():
        for title, method in methods(weights):
            found = held(method, model, TOKENS)
            label = weights if weights == "attention" else f"LoRA, rank {RANK}"
            table.add_row(name, label, title, *(f"{each / 1e6:,.1f}" for each in found))
    print_table(table)


if __name__ == "__main__":
    run(main)
