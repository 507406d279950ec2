"""What a file or folder of an adapter holds, by the part of the pipeline that it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attr.adapters.custom_diffusion import is_custom_diffusion, read_weights
from lightning_attr.adapters.lora import NETWORK, File, Parts, check_fits, lay_over, read_lora
from lightning_attr.adapters.words import Words, add_words, read_words
from lightning_attr.artifacts.checkpoint_files import content_digest
from lightning_attr.artifacts.tensors import read_safetensors
from lightning_attr.console import warn
from lightning_attr.errors import UserError, one_line
from lightning_attr.weight_files import found_instead

#: The files of a folder that are looked at, in this order, but for the words of Custom Diffusion.
FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_custom_diffusion_weights.safetensors",
    "pytorch_custom_diffusion_weights.bin",
    "learned_embeds.safetensors",
)


@dataclass(frozen=True)
class Adapter:
    """What is laid over a base model.

    Attributes:
        path: Where it lies.
        loras: By part of the pipeline and layer.
        weights: Of the network, which take the place of the base's, by name.
        words: What the tokenizers learn, by part of the pipeline.
    """

    path: str
    loras: Parts = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    words: Words = field(default_factory=dict)

    def into_network(self, network: nn.Module) -> list[str]:
        """Lay it over a network; return the names of the parameters that are its own.

        Raises:
            UserError: It is of another network.
        """
        if lows := self.loras.get(NETWORK):
            check_fits(self.path, network, lows, "network")
            return lay_over(network, lows)
        parameters = dict(network.named_parameters())
        for name, value in self.weights.items():
            own = parameters.get(name)
            if own is None or own.shape != value.shape:
                found = None if own is None else tuple(own.shape)
                raise UserError(f"{self.path}: {name}: found {tuple(value.shape)}, expected {found} as the base has it")
            if not bool(value.isfinite().all()):
                raise UserError(f"{self.path}: weight {name} is not finite, expected numbers")
            with torch.no_grad():
                own.copy_(value)
        return list(self.weights)

    def into_texts(self, parts: Mapping[str, Any]) -> None:
        """Lay it over all text encoders of a pipeline.

        Args:
            parts: Its text encoders and tokenizers, by names such as ``text_encoder_2`` and ``tokenizer_2``.

        Raises:
            UserError: It is of others.
        """
        for part in [part for part in {**self.loras, **self.words} if part != NETWORK]:
            if parts.get(part) is None:
                raise UserError(f"{self.path}: found something for {part}, which the pipeline has not")
            self.into_text(part, parts[part], parts[part.replace("text_encoder", "tokenizer")])

    def into_text(self, part: str, encoder: nn.Module, tokenizer: Any) -> None:
        """Lay it over a text encoder and its tokenizer; nothing where it has no part of them.

        Args:
            part: ``text_encoder``, ``text_encoder_2`` or ``text_encoder_3``.
            encoder: Of transformers.
            tokenizer: Of transformers.

        Raises:
            UserError: It is of another text encoder.
        """
        if lows := self.loras.get(part):
            if hasattr(encoder, "text_model"):
                layers = dict(encoder.named_modules())
                lows = {name if name in layers else f"text_model.{name}": low for name, low in lows.items()}
            check_fits(self.path, encoder, lows, part)
            lay_over(encoder, lows)
            encoder.eval().requires_grad_(False)
        if words := self.words.get(part):
            add_words(self.path, words, encoder, tokenizer)

    @property
    def text_digest(self) -> str | None:
        """Return the digest of its part of text encoders; None where it has none."""
        loras = {part: lows for part, lows in self.loras.items() if part != NETWORK}
        return content_digest([loras, self.words]) if loras or self.words else None


def read_adapter(path: str | Path, class_name: str, config: Mapping[str, Any], alpha: float | None = None) -> Adapter:
    """Read an adapter.

    Args:
        path: A file, or a folder with one of :data:`FILES`.
        class_name: Of the network that it is laid over.
        config: Of that network.
        alpha: Of a LoRA whose file lost it; None is the rank, which is said.

    Raises:
        UserError: There is none, it is damaged, or of a kind that is not taken.
    """
    file = _read(Path(path))
    where = file.where
    if words := read_words(file):
        adapter = Adapter(where, words=words)
    elif is_custom_diffusion(file.tensors):
        adapter = Adapter(where, weights=read_weights(file), words=_words_beside(Path(path)))
    else:
        loras, known = read_lora(file, class_name, config, alpha)
        if not known:
            warn(f"{where}: found no alpha in it; it is taken to be the rank; a model spec can say another one: alpha")
        return Adapter(where, loras)
    if alpha is not None:
        raise UserError(f"{where}: found an adapter that has no alpha, expected none where alpha {alpha:g} is given")
    return adapter


def _read(path: Path) -> File:
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        alone = sorted(path.glob("*.safetensors"))
        if found is None and len(alone) == 1:
            found = alone[0]
        if found is None:
            others = ", ".join(file.name for file in alone) or "no safetensors file"
            raise UserError(f"{path}: found {others}, expected one file of an adapter, such as {FILES[0]}")
        path = found
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected an adapter")
    where, metadata = f"adapter {path}", dict[str, str]()
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
    else:
        tensors = read_pickle(path)
    for name, value in tensors.items():
        number = name.endswith(".alpha") and isinstance(value, Tensor)  # which may be a whole one
        if (instead := found_instead(value.float() if number else value)) is not None:
            raise UserError(f"{where}: {name}: found {instead}, expected a plain floating-point tensor")
    return File(where, {name: value.float() for name, value in tensors.items()}, metadata, _config(path))


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a file of ``torch.save`` that holds tensors alone, without running code from it.

    Raises:
        UserError: It holds more.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no error of its own for a damaged file
        raise UserError(f"adapter {path}: refused, it is damaged or could run code ({one_line(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"adapter {path}: found a {type(content).__name__}, expected tensors by name")
    return {name: value for name, value in content.items() if value != {}}  # of layers that were not trained


def _config(path: Path) -> Mapping[str, Any]:
    """Return PEFT's config beside a file."""
    config = path.with_name("adapter_config.json")
    if path.name != "adapter_model.safetensors" or not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"{config}: not JSON ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{config}: found a {type(found).__name__}, expected a config")
    return found


def _words_beside(path: Path) -> Words:
    """Return the words in the other files of a folder of Custom Diffusion, such as ``<new1>.bin``."""
    if not path.is_dir():
        return {}
    words: dict[str, Tensor] = {}
    for each in sorted([*path.glob("<*>.bin"), *path.glob("<*>.safetensors")]):
        words |= next(iter(read_words(_read(each)).values()), {})
    return {"text_encoder": words} if words else {}
