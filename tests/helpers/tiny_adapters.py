"""LoRAs over tiny pipelines, trained for a few steps, and their files in all key formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_attr.gradients import per_sample_gradients
from lightning_attr.models import Inputs, Model

#: The layers of each part that get a LoRA, in every family that has them.
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0|q_proj|out_proj|fc1|conv1|proj_in|add_k_proj)"
RANK, ALPHA = 3, 6.0


def lay_over(module: nn.Module, targets: str = TARGETS, seed: int = 0) -> None:
    """Lay a LoRA over a module, with weights as training would leave them: neither is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=targets), module)
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.data = 0.3 * torch.randn_like(weight)
    module.requires_grad_(False)


def keys(**parts: nn.Module) -> dict[str, Tensor]:
    """The LoRA of some parts of a pipeline, by PEFT's keys after the part's name."""
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        for name, value in get_peft_model_state_dict(module).items()
    }


def save_plain(folder: Path, named: Mapping[str, Tensor]) -> Path:
    """As diffusers writes it without metadata: alpha is lost."""
    folder.mkdir(parents=True)
    save_file(dict(named), folder / "pytorch_lora_weights.safetensors")
    return folder


def save_diffusers(folder: Path, named: Mapping[str, Tensor], **changed: Any) -> Path:
    """As diffusers writes it with metadata."""
    folder.mkdir(parents=True)
    layers = sorted({name.partition(".")[2].rpartition(".lora_")[0] for name in named})
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": layers, **changed}
    said = {
        f"{part}.{key}": value for part in {name.split(".")[0] for name in named} for key, value in settings.items()
    }
    save_file(
        dict(named),
        folder / "pytorch_lora_weights.safetensors",
        {"format": "pt", "lora_adapter_metadata": json.dumps(said)},
    )
    return folder


def save_peft(folder: Path, named: Mapping[str, Tensor], **changed: Any) -> Path:
    """As PEFT writes that of the network alone."""
    folder.mkdir(parents=True)
    own = {f"base_model.model.{name.partition('.')[2]}": value for name, value in named.items() if "text" not in name}
    save_file(own, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **changed}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def save_kohya(file: Path, named: Mapping[str, Tensor], text: str = "lora_te") -> Path:
    """As kohya's trainer writes it for a UNet: an alpha for each layer."""
    result: dict[str, Tensor] = {}
    for name, value in named.items():
        part, _, rest = name.partition(".")
        layer, role = rest.split(".lora_")
        prefix = "lora_unet_" if part == "unet" else f"{text}_text_model_"
        if part == "text_encoder_2":
            prefix = "lora_te2_"
        key = prefix + layer.removeprefix("text_model.").replace(".", "_")
        result[f"{key}.lora_{'down' if role.startswith('A') else 'up'}.weight"] = value
        result[f"{key}.alpha"] = torch.tensor(ALPHA)
    save_file(result, file)
    return file


def check_gradients(model: Model, pattern: str, inputs: Inputs, tolerance: float) -> dict[str, Tensor]:
    """Compare the gradients by hooks with autograd's, one sample at a time."""
    selected = model.select(pattern)

    def losses(network: nn.Module, inputs: Inputs) -> Tensor:
        return model.over(network).losses(*inputs)

    found = per_sample_gradients(model.network, selected, losses, inputs)
    assert found.keys() == selected.keys()
    for weight in selected.values():
        weight.requires_grad_()
    for row in range(len(inputs.latent)):
        conditions = {name: value[[row]] for name, value in inputs.conditions.items()}
        alone = Inputs(inputs.latent[[row]], conditions, inputs.timesteps[[row]], inputs.noise[[row]])
        expected = torch.autograd.grad(losses(model.network, alone).sum(), list(selected.values()))
        norm = torch.cat([each.flatten() for each in expected]).norm()
        assert norm > 0
        for name, each in zip(selected, expected, strict=True):
            assert (found[name][row] - each).norm() <= tolerance * norm, name
    model.network.requires_grad_(False)
    return found
