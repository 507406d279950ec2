"""Encoders by name, from what a store's schema says."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, cast, get_type_hints

from lightning_attr.encoders.base import ImageEncoder, TextEncoder
from lightning_attr.encoders.hashed_words import HashedWords
from lightning_attr.encoders.patch_pca import PatchPCA
from lightning_attr.encoders.pipeline_text import PipelineText
from lightning_attr.encoders.pretrained import AutoencoderKLEncoder, CLIPText
from lightning_attr.errors import UserError, quoted

_IMAGE: tuple[type, ...] = (PatchPCA, AutoencoderKLEncoder)
_TEXT: tuple[type, ...] = (HashedWords, CLIPText, PipelineText)


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
        raise UserError(f"text encoder: found a state of {len(state)} bytes, expected none")
    return cast(TextEncoder, _rebuild(config, _TEXT, "text encoder"))


def _rebuild(config: Mapping[str, Any], known: Sequence[type], what: str) -> object:
    """Call the class that ``config`` names with the rest of ``config``. A store reaches for nothing elsewhere."""
    if not isinstance(config, Mapping):
        raise UserError(f"{what}: found {quoted(config)}, expected a class and its arguments")
    cls = next((cls for cls in known if cls.__name__ == config.get("class")), None)
    if cls is None:
        expected = ", ".join(cls.__name__ for cls in known)
        raise UserError(f"{what}: found class {quoted(config.get('class'))}, expected one of {expected}")
    arguments = {key: value for key, value in config.items() if key != "class"}
    parameters = dict(signature(cls).parameters)
    here = {"local": True} if parameters.pop("local", None) else {}
    _check_arguments(arguments, parameters, get_type_hints(cls.__init__), f"{what} {cls.__name__}")  # type: ignore[misc]
    return cls(**arguments, **here)


def _check_arguments(
    arguments: Mapping[str, Any], parameters: Mapping[str, Parameter], types: Mapping[str, Any], what: str
) -> None:
    """Refuse arguments that a class does not have, the lack of those that it needs, and those of other types."""
    unknown = [key for key in arguments if key not in parameters]
    missing = [name for name, p in parameters.items() if p.default is Parameter.empty and name not in arguments]
    if unknown:
        raise UserError(f"{what}: found argument {quoted(unknown[0])}, expected {', '.join(parameters)}")
    if missing:
        raise UserError(f"{what}: expected {missing[0]}, found none")
    for name, value in arguments.items():
        if not isinstance(value, types[name]) or (isinstance(value, bool) and types[name] is not bool):
            expected = getattr(types[name], "__name__", types[name])
            raise UserError(f"{what}: found {name} {quoted(value)}, expected {expected}")
