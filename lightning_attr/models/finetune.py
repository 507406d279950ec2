"""Fine-tuning: a base model that lies elsewhere, and the weights over it that are trained.

Shapes: r the rank of a LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lightning_attr.adapters.custom_diffusion import keys_of
from lightning_attr.adapters.lora import Low, check_fits, lay_over, lora_file
from lightning_attr.artifacts import write_atomically
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.encoders import is_word, text_encoder
from lightning_attr.errors import UserError, expect_within, one_line, quoted
from lightning_attr.models.model import Model
from lightning_attr.models.new_word import attach, encoder_of_words, tell

Kind = Literal["lora", "custom_diffusion", "full"]

#: The file of a trained adapter in its run's folder, by kind, as the pipelines of diffusers look for it.
FILES: Mapping[str, str] = {
    "lora": "pytorch_lora_weights.safetensors",
    "custom_diffusion": "pytorch_custom_diffusion_weights.safetensors",
}

#: Where a base is looked for that does not lie any more where it did: beside the checkpoint, under this name.
BESIDE = "base"


@dataclass(frozen=True)
class Trained:
    """What of a base is trained.

    Args:
        kind: ``lora``; ``custom_diffusion``, the keys and values at cross-attention; or ``full``, all weights.
        rank: Of a LoRA.
        alpha: Of a LoRA, whose part is scaled by alpha / rank; None is the rank.
        targets: The layers that get a LoRA: a regular expression, searched in their names.
        text_encoder: Whether the text encoder is trained as well: no, for stores hold texts that are encoded.
        token: A word of the captions whose embedding is trained as well, beside an adapter; see
            :mod:`lightning_attr.models.new_word`.
    """

    kind: Kind = "lora"
    rank: int = 4
    alpha: float | None = None
    targets: str = r"\.to_(q|k|v|out\.0)$"
    text_encoder: bool = False
    token: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in get_args(Kind):
            raise UserError(f"model.base.adapter.kind: found {quoted(self.kind)}, expected {', '.join(get_args(Kind))}")
        expect_within("model.base.adapter.rank", self.rank, 1, 100_000)
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UserError(f"model.base.adapter.alpha: found {self.alpha}, expected a positive number")
        if self.text_encoder:
            raise UserError(
                "model.base.adapter.text_encoder: found true, expected false: the store holds texts as the text "
                "encoder was, and they would not change with it"
            )
        if self.token is not None and not is_word(self.token):
            raise UserError(f"model.base.adapter.token: found {quoted(self.token)}, expected one word")
        if self.token is not None and self.kind == "full":
            raise UserError("model.base.adapter.token: found a word with all weights, expected it beside an adapter")


@dataclass(frozen=True)
class Base:
    """What a fine-tuning starts from.

    Args:
        model: A folder of diffusers, a checkpoint or a model spec.
        adapter: What of it is trained.
    """

    model: InputPath
    adapter: Trained = Trained()


def begun(base: Base, load: Callable[[str], Model], seed: int) -> Model:
    """Return a base with the weights to train over it, as they are before the first step.

    Args:
        base: What to start from.
        load: Loads the base.
        seed: Of a LoRA's A; its B is zero.

    Raises:
        UserError: The base has an adapter already, or nothing of it is to be trained.
    """
    model, kind = load(base.model), base.adapter.kind
    if model.denoiser.adapter:
        raise UserError(f"model.base.model: found {base.model} with an adapter, expected a base without")
    if kind == "lora":
        names = lay_over(model.network, _fresh(model.network, base.adapter, seed))
    elif kind == "custom_diffusion":
        names = _keys_and_values(model)
    else:
        names = []
    model = model.with_adapter([*names, *_new_word(model, base.adapter)])
    for name, weight in model.network.named_parameters():
        weight.requires_grad_(kind == "full" or name in model.denoiser.adapter)
    return model


def _new_word(model: Model, adapter: Trained) -> list[str]:
    """Attach an adapter's new word, where it has one; return its parameters' names."""
    if adapter.token is None:
        return []
    width = model.denoiser.conditions["text"][-1]
    assert width is not None
    return [attach(model.network, width)]


def _keys_and_values(model: Model) -> list[str]:
    if model.denoiser.class_name != "UNet2DConditionModel":
        raise UserError(
            f"model.base.adapter.kind: found custom_diffusion of a {model.denoiser.class_name}, expected lora"
        )
    return list(model.select("cross_kv"))


def _fresh(network: nn.Module, adapter: Trained, seed: int) -> dict[str, Low]:
    """Return a LoRA that changes nothing yet, of every layer whose name is targeted."""
    try:
        targets = re.compile(adapter.targets)
    except re.error as error:
        raise UserError(f"model.base.adapter.targets: not a regular expression ({one_line(error)})") from error
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and targets.search(name)
    }
    if not layers:
        raise UserError(f"model.base.adapter.targets: found no layer for {adapter.targets!r}, expected some")
    generator, alpha = torch.Generator().manual_seed(seed), adapter.alpha or float(adapter.rank)

    def low(layer: nn.Module) -> Low:
        weight: Any = layer.weight
        down = torch.empty(adapter.rank, *weight.shape[1:])
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)  # as PEFT draws it
        return Low(down, torch.zeros(len(weight), adapter.rank, *[1] * (weight.ndim - 2)), alpha)

    return {name: low(layer) for name, layer in layers.items()}


def of_base(base: Base, model: Model) -> dict[str, Any]:
    """Return what a checkpoint says of the base, wherever that lies; of a new word it adds the ``texts``' encoder."""
    adapter = asdict(base.adapter)
    if base.adapter.token is None:  # as checkpoints said it before there were such
        del adapter["token"]
    return {"digest": model.digest, "adapter": adapter}


def form(model: Model) -> dict[str, Any]:
    """Return what a model's adapter is like: the shapes of its weights by name, and the scales of LoRA by layer."""
    parameters = dict(model.network.named_parameters())
    scales = {name: getattr(module, "scaling", None) for name, module in model.network.named_modules()}
    return {
        **{name: tuple(parameters[name].shape) for name in model.denoiser.adapter},
        **{name: scale["default"] for name, scale in scales.items() if isinstance(scale, dict)},
    }


def restored(record: Mapping[str, Any], weights: Mapping[str, Tensor], base: Model) -> Model:
    """Return a base with the weights over it that a checkpoint holds.

    Args:
        record: What :func:`of_base` said.
        weights: By name.
        base: The base.

    Raises:
        UserError: They are not of this base.
    """
    adapter = Trained(**record["adapter"])
    if adapter.kind == "lora":
        lows = _lows(weights, adapter)
        check_fits("its weights", base.network, lows, "base")
        names = lay_over(base.network, lows)
    elif adapter.kind == "custom_diffusion":
        names = _keys_and_values(base)
    else:
        raise UserError("found a checkpoint of all weights with a base, expected one of an adapter")
    names = [*names, *_new_word(base, adapter)]
    if adapter.token is not None:
        tell(base.network, adapter.token, encoder_of_words(text_encoder(record["texts"], None)))
    own = dict(base.network.named_parameters())
    expected = {name: tuple(own[name].shape) for name in names}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise UserError(f"found {name} {found.get(name, 'missing')}, expected {expected.get(name, 'none')}")
    with torch.no_grad():
        for name, value in weights.items():
            if not bool(value.isfinite().all()):
                raise UserError(f"weight {name} is not finite, expected numbers")
            own[name].copy_(value)
    return base.with_adapter(names)


def _lows(weights: Mapping[str, Tensor], adapter: Trained) -> dict[str, Low]:
    """Return the LoRA of every layer that parameters by PEFT's names are of, as far as A and B are there."""
    alpha, down = adapter.alpha or float(adapter.rank), ".lora_A.default.weight"
    pairs = {name.removesuffix(down): name.replace(".lora_A.", ".lora_B.") for name in weights if name.endswith(down)}
    return {layer: Low(weights[layer + down], weights[up], alpha) for layer, up in pairs.items() if up in weights}


def export(folder: Path, adapter: Trained, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write the file of a trained adapter into a folder, for ``load_lora_weights`` or ``load_attn_procs`` of diffusers.

    Args:
        folder: Where to.
        adapter: What was trained. Of all weights there is no such file, nor of an adapter with a new word: no pipeline
            has its encoder, and the file would be another model without the word.
        network: What it lies over.
        weights: By their names in it.
    """
    if adapter.token is not None:
        return
    own = {name: value.detach().float().cpu().contiguous() for name, value in weights.items()}
    if adapter.kind == "lora":
        write_atomically(folder / FILES["lora"], lora_file(_lows(own, adapter), type(network).__name__))
    elif adapter.kind == "custom_diffusion":
        processors: Any = network.attn_processors
        write_atomically(folder / FILES["custom_diffusion"], save(keys_of(own, processors)))
