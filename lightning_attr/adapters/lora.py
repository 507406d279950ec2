"""LoRA: ``W x + (alpha / r) B A x`` at some layers (LoRA, 4.1), in the key formats of PEFT, diffusers and kohya.

Shapes: r the rank; A [r, in, ...] and B [out, r, ...] have the axes of the layer's weight, of convolutions the kernel's
as well.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.utils.state_dict_utils import convert_all_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors.torch import save
from torch import Tensor, nn

from lightning_attr.errors import UserError, one_line
from lightning_attr.extras import optional

#: The part of a pipeline that is the network, whatever its family calls it.
NETWORK = "network"

#: Where diffusers keeps the settings of a LoRA in a file's header.
HEADER = "lora_adapter_metadata"

#: What kinds of adapters that are not taken have in their keys.
OTHERS: Mapping[str, tuple[str, ...]] = {
    "LoKr": ("lokr_",),
    "LoHa": ("hada_",),
    "DoRA": ("dora_scale", "lora_magnitude_vector"),
    "IA3": ("ia3_",),
    "OFT": ("oft_", "boft_"),
    "GLoRA": (".a1.weight", ".b1.weight"),
    "a LoRA with biases": ("lora_B.bias", "lora_up.bias", "diff_b"),
    "a LoRA of embeddings": ("lora_embedding_",),
}

#: What gives the keys of each network's LoRA their names in it.
CONVERTERS = {
    "UNet2DConditionModel": "StableDiffusionXLLoraLoaderMixin",
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
}

#: What begins the keys that name a part of a pipeline.
PREFIXES = ("unet.", "transformer.", "text_encoder", "lora_", "diffusion_model.")


class Low(NamedTuple):
    """The LoRA of one layer."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Return r."""
        return len(self.down)


class File(NamedTuple):
    """What a file holds, and where it lies, for messages."""

    where: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    """PEFT's ``adapter_config.json``; empty where there is none."""


Parts = dict[str, dict[str, Low]]
"""By the part of the pipeline, such as ``network`` or ``text_encoder``, and by the layer."""


def read_lora(file: File, class_name: str, config: Mapping[str, Any], alpha: float | None) -> tuple[Parts, bool]:
    """Return the LoRA of every layer by its name in the network or text encoder, and whether its alpha is known.

    Args:
        file: Its contents.
        class_name: Of the network.
        config: Of the network, by which the blocks of other namings are counted.
        alpha: For a file that does not have it; None is the rank.

    Raises:
        UserError: The adapter is of another kind or damaged, or it has an alpha of its own.
    """
    _check_kind(file)
    named, alphas = _converted(file, class_name, config)
    said = _said(file)
    known = bool(alphas or said) or any(name.endswith(".alpha") for name in file.tensors)
    if known and alpha is not None:
        raise UserError(f"{file.where}: found an alpha of its own, expected none where alpha {alpha:g} is given")
    parts: Parts = defaultdict(dict)
    for key in [key for key in named if key.endswith(".lora_A.weight")]:
        layer = key.removesuffix(".lora_A.weight")
        down, up = named.pop(key), named.pop(f"{layer}.lora_B.weight", None)
        if up is None or down.ndim < 2 or up.ndim != down.ndim or up.shape[1] != len(down):
            found = "no B" if up is None else f"A of {tuple(down.shape)} and B of {tuple(up.shape)}"
            raise UserError(f"{file.where}: {layer}: found {found}, expected A of r x in and B of out x r")
        part, _, name = layer.partition(".")
        own = alphas.pop(layer, None)
        scale = alpha if alpha is not None else own if own is not None else _alpha_said(said.get(part), name, len(down))
        if part not in ("unet", "transformer") and not part.startswith("text_encoder"):
            raise UserError(f"{file.where}: found {layer}, expected keys of a network or of text encoders")
        if part in ("unet", "transformer"):
            parts[NETWORK][name] = Low(down, up, scale)
        else:  # since transformers 5 CLIP's layers have this before their names in some models alone
            parts[part][name.removeprefix("text_model.")] = Low(down, up, scale)
    if left := [*named, *alphas]:
        raise UserError(f"{file.where}: found {len(left)} keys that are no LoRA, such as {left[0]}, expected A and B")
    if not parts:
        raise UserError(f"{file.where}: found no LoRA in it, expected A and B of some layers")
    return parts, known or alpha is not None


def _check_kind(file: File) -> None:
    for kind, signs in OTHERS.items():
        if (key := next((key for key in file.tensors if any(sign in key for sign in signs)), None)) is not None:
            raise UserError(f"{file.where}: found {kind} ({key}), expected a plain LoRA")
    said = [file.config, *_said(file).values()]
    for config in said:
        kind = config.get("peft_type", "LORA")
        if kind != "LORA":
            raise UserError(f"{file.where}: found an adapter of type {kind}, expected a plain LoRA")
        for setting in ("use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens"):
            if config.get(setting):
                raise UserError(f"{file.where}: found {setting} {config[setting]!r}, expected a plain LoRA")
        if config.get("bias", "none") != "none":
            raise UserError(f"{file.where}: found bias {config['bias']!r}, expected 'none'")


def _converted(file: File, class_name: str, config: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return A and B by PEFT's keys, ``PART.LAYER.lora_A.weight``, and the alphas by ``PART.LAYER``."""
    plain = {key.removeprefix("base_model.model."): value for key, value in file.tensors.items()}
    if not any(key.startswith(PREFIXES) for key in plain):
        part = "text_encoder" if all(key.startswith("text_model.") for key in plain) else _prefix(class_name)
        plain = {f"{part}.{key}": value for key, value in plain.items()}
    alphas: Mapping[str, Any] | None = None
    try:
        if (converter := getattr(diffusers.loaders, CONVERTERS.get(class_name, ""), None)) is None:
            named = plain
        elif class_name == "FluxTransformer2DModel":
            named, alphas = converter.lora_state_dict(plain, return_alphas=True)
        elif class_name == "UNet2DConditionModel":
            named, alphas = converter.lora_state_dict(plain, unet_config=_Config(config))
        else:
            named = converter.lora_state_dict(plain)
    except Exception as error:  # the converters' errors have no type in common
        raise UserError(f"{file.where}: found keys that cannot be read as a LoRA: {one_line(error)}") from error
    before, after = (sum(not key.endswith(".alpha") for key in each) for each in (file.tensors, named))
    if after < before:
        raise UserError(f"{file.where}: found {before} weights, of which {before - after} are no LoRA of this family")
    both = {**named, **(alphas or {})}
    result: dict[str, Any] = {}
    for part in dict.fromkeys(key.partition(".")[0] for key in both):
        own = {key: value for key, value in both.items() if key.partition(".")[0] == part}
        convert: Any = (
            convert_all_state_dict_to_peft if part.startswith("text_encoder") else convert_unet_state_dict_to_peft
        )
        result |= convert(own)
    numbers = {key: value for key, value in result.items() if key.endswith(".alpha")}
    weights = {key: value for key, value in result.items() if key not in numbers}
    return weights, {_layer(key): float(value) for key, value in numbers.items()}


def _layer(key: str) -> str:
    """Return the layer that an alpha is of; some converters leave the name of its A in the key."""
    return re.sub(r"(\.lora_[AB](\.weight)?)?\.alpha$", "", key)


class _Config:
    """A network's config, as converters read it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.layers_per_block = config.get("layers_per_block", 2)


def _prefix(class_name: str) -> str:
    return "unet" if class_name.startswith("UNet") else "transformer"


def _said(file: File) -> dict[str, Mapping[str, Any]]:
    """Return what PEFT's config, or diffusers' in the header, says of each part of the pipeline."""
    said: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        header = json.loads(file.metadata.get(HEADER, "{}"))
    except ValueError as error:
        raise UserError(f"{file.where}: {HEADER}: not JSON ({one_line(error)})") from error
    for key, value in header.items():
        part, _, name = key.partition(".")
        said[part][name] = value
    if file.config:
        parts = ("unet", "transformer", "text_encoder")
        said |= {part: dict(file.config) for part in parts if part not in said}
    return dict(said)


def _alpha_said(said: Mapping[str, Any] | None, layer: str, rank: int) -> float:
    """Return the alpha that a config says of a layer, scaled as :class:`Low` means it; the rank where it says none."""
    if not said:
        return rank
    pattern = said.get("alpha_pattern") or {}
    alpha = next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), None)
    alpha = alpha if alpha is not None else said.get("lora_alpha", rank)
    return float(alpha) * (rank**0.5 if said.get("use_rslora") else 1)


def check_fits(where: str, module: nn.Module, lows: Mapping[str, Low], what: str) -> None:
    """Check that a module has all layers that a LoRA is of, in its sizes, and that its numbers are finite.

    Raises:
        UserError: It does not.
    """
    layers = dict(module.named_modules())
    missing = [name for name in lows if not isinstance(layers.get(name), nn.Linear | nn.Conv2d)]
    if missing:
        found = "no layer" if len(missing) == len(lows) else f"{len(missing)} of {len(lows)} layers missing"
        raise UserError(
            f"{where}: found {found} of the {what} that it is of, such as {missing[0]}, expected those of this base"
        )
    for name, low in lows.items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        sizes = (low.up.shape[0], low.down.shape[1], *low.down.shape[2:])
        if sizes != weight.shape:
            raise UserError(
                f"{where}: {name}: found a LoRA of {' x '.join(map(str, sizes))}, expected "
                f"{' x '.join(map(str, weight.shape))} as the {what} has it: it is of another base"
            )
        if not bool(low.down.isfinite().all() and low.up.isfinite().all()):
            raise UserError(f"{where}: weight {name} is not finite, expected numbers")


def lay_over(module: nn.Module, lows: Mapping[str, Low]) -> list[str]:
    """Lay a LoRA over a module, without dropout; return the names of its parameters.

    Raises:
        UserError: PEFT is not installed.
    """
    peft = optional("peft", "hf", "adapter")
    rank, alpha = (
        Counter(values).most_common(1)[0][0]
        for values in zip(*((low.rank, low.alpha) for low in lows.values()), strict=True)
    )
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(map(re.escape, lows)),
        rank_pattern={f"^{re.escape(name)}": low.rank for name, low in lows.items() if low.rank != rank},
        alpha_pattern={f"^{re.escape(name)}": low.alpha for name, low in lows.items() if low.alpha != alpha},
    )
    before = set(dict(module.named_parameters()))
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced
        peft.inject_adapter_in_model(config, module)
    layers = dict(module.named_modules())
    with torch.no_grad():
        for name, low in lows.items():
            for role, value in (("lora_A", low.down), ("lora_B", low.up)):
                layers[f"{name}.{role}.default"].weight.copy_(value)
    after = [name for name, _ in module.named_parameters()]
    return [name for name in after if name.replace(".base_layer", "") not in before]


def lora_file(lows: Mapping[str, Low], class_name: str) -> bytes:
    """Return the file of a network's LoRA of one rank and alpha, as diffusers writes it; alpha is in its header.

    Args:
        lows: By layer.
        class_name: Of the network.
    """
    part, some = _prefix(class_name), next(iter(lows.values()))
    said = {"r": some.rank, "lora_alpha": some.alpha, "target_modules": sorted(lows)}
    header = json.dumps({f"{part}.{name}": value for name, value in said.items()}, sort_keys=True)
    tensors = {
        f"{part}.{layer}.{role}.weight": value
        for layer, low in lows.items()
        for role, value in (("lora_A", low.down), ("lora_B", low.up))
    }
    return save(tensors, {HEADER: header})
