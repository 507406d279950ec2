"""Encoders by name, from what a store's schema says."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, cast

from lightning_attr.encoders.base import ImageEncoder, TextEncoder
from lightning_attr.encoders.hashed_words import HashedWords
from lightning_attr.encoders.patch_pca import PatchPCA
from lightning_attr.encoders.pretrained import AutoencoderKLEncoder, CLIPText
from lightning_attr.errors import UserError

_IMAGE: tuple[type, ...] = (PatchPCA, AutoencoderKLEncoder)
_TEXT: tuple[type, ...] = (HashedWords, CLIPText)


def image_encoder(config: Mapping[str, Any], state: bytes | None) -> ImageEncoder:
    """Rebuild a store's image encoder: ``image_encoder(store.schema.encoders["image"], store.encoder_state("image"))``.

    Raises:
        UserError: The config names no encoder of ours, or its state is missing or does not fit.
    """
    encoder = _rebuild(config, _IMAGE, "image encoder")
    if isinstance(encoder, PatchPCA):
        if state is None:
            raise UserError("image encoder PatchPCA: the store holds no state for it, expected its fitted basis")
        encoder.load_state(state)
    return cast(ImageEncoder, encoder)


def text_encoder(config: Mapping[str, Any], state: bytes | None) -> TextEncoder:
    """Rebuild a store's text encoder; none of them has a state so far, which must then be None.

    Raises:
        UserError: The config names no encoder of ours, or there is a state that nothing can take.
    """
    if state is not None:
        raise UserError(f"text encoder {config.get('class')}: found a state of {len(state)} bytes, expected none")
    return cast(TextEncoder, _rebuild(config, _TEXT, "text encoder"))


def _rebuild(config: Mapping[str, Any], known: Sequence[type], what: str) -> object:
    """Call the class that ``config`` names with the rest of ``config``."""
    by_class = {cls.__name__: cls for cls in known}
    name = config.get("class")
    if name not in by_class:
        raise UserError(f"{what}: found class {name!r}, expected one of {', '.join(by_class)}")
    arguments = {key: value for key, value in config.items() if key != "class"}
    _check_names(arguments, by_class[name], f"{what} {name}")
    return by_class[name](**arguments)


def _check_names(arguments: Mapping[str, Any], cls: type, what: str) -> None:
    """Refuse arguments that ``cls`` does not have and the lack of those that it needs."""
    parameters = signature(cls).parameters
    unknown = [key for key in arguments if key not in parameters]
    missing = [name for name, p in parameters.items() if p.default is Parameter.empty and name not in arguments]
    if unknown:
        raise UserError(f"{what}: found argument {unknown[0]!r}, expected {', '.join(parameters)}")
    if missing:
        raise UserError(f"{what}: expected {missing[0]}, found none")
