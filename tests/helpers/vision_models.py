"""Tiny vision models with random weights, saved to disk as their authors publish them."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

SIDE = 16

_SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_PATCHES = {**_SIZE, "image_size": SIDE, "patch_size": 8}

#: Further kinds: what transformers calls them, and the arguments of their configs.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "convnext": ("ConvNext", {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "mobilenet": ("MobileNetV2", {"depth_multiplier": 0.1, "image_size": SIDE}),
    "siglip": ("SiglipVision", _PATCHES),
    "clip-vision": ("CLIPVision", _PATCHES),
    "mae": ("ViTMAE", _PATCHES),
    "bert": ("Bert", {**_SIZE, "vocab_size": 10}),
}


def save_vision_model(kind: str, folder: Path) -> Path:
    """Save a model of a kind and its preprocessing, which resizes to 16 x 16."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    crop = {"size": {"shortest_edge": 20}, "crop_size": {"height": SIDE, "width": SIDE}}
    if kind == "dino":
        model = transformers.ViTModel(transformers.ViTConfig(**size, intermediate_size=32), add_pooling_layer=False)
        processor = transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**size))
        processor = transformers.BitImageProcessorPil(**crop)
    elif kind in OTHERS:
        name, config = OTHERS[kind]
        known = getattr(transformers, f"{name}Config")
        model = getattr(transformers, f"{name}Model")(known(**config))
        processor = transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    else:
        text = {"vocab_size": 10, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "max_position_embeddings": 9, "bos_token_id": 0, "eos_token_id": 1}
        vision = {**size, "intermediate_size": 32}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        )
        processor = transformers.CLIPImageProcessorPil(**crop)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
