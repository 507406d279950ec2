"""Encoders by name: from the command line, and from what a store's schema says."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, cast

from lightning_attr.encoders.base import ImageEncoder, TextEncoder
from lightning_attr.encoders.hashed_words import HashedWords
from lightning_attr.encoders.patch_pca import PatchPCA
from lightning_attr.encoders.pretrained import AutoencoderKLEncoder, CLIPText
from lightning_attr.errors import UserError

_IMAGE: dict[str, type] = {"patch-pca": PatchPCA, "kl": AutoencoderKLEncoder}
_TEXT: dict[str, type] = {"hashed-words": HashedWords, "clip": CLIPText}


def parse_image_encoder(spec: str) -> ImageEncoder:
    """Build an image encoder from its command-line form; `PatchPCA` still has to be fitted.

    Forms: `patch-pca`, `patch-pca:patch=4,channels=8`, `kl:NAME_OR_FOLDER`, `kl:NAME_OR_FOLDER,pipeline=true`.

    Raises:
        UserError: no such encoder or argument, or it cannot be loaded.
    """
    return cast(ImageEncoder, _parse(spec, _IMAGE, "image encoder"))


def parse_text_encoder(spec: str) -> TextEncoder:
    """Build a text encoder from its command-line form.

    Forms: `hashed-words`, `hashed-words:tokens=16,dim=64`, `clip:NAME_OR_FOLDER`, `clip:NAME_OR_FOLDER,pipeline=true`.

    Raises:
        UserError: no such encoder or argument, or it cannot be loaded.
    """
    return cast(TextEncoder, _parse(spec, _TEXT, "text encoder"))


def image_encoder(config: Mapping[str, Any], state: bytes | None) -> ImageEncoder:
    """Rebuild a store's image encoder: `image_encoder(store.schema.encoders["image"], store.encoder_state("image"))`.

    Raises:
        UserError: the config names no encoder of ours, or its state is missing or does not fit.
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
        UserError: the config names no encoder of ours, or there is a state that nothing can take.
    """
    if state is not None:
        raise UserError(f"text encoder {config.get('class')}: found a state of {len(state)} bytes, expected none")
    return cast(TextEncoder, _rebuild(config, _TEXT, "text encoder"))


def _rebuild(config: Mapping[str, Any], known: Mapping[str, type], what: str) -> object:
    """Call the class that `config` names with the rest of `config`."""
    by_class = {cls.__name__: cls for cls in known.values()}
    name = config.get("class")
    if name not in by_class:
        raise UserError(f"{what}: found class {name!r}, expected one of {', '.join(by_class)}")
    arguments = {key: value for key, value in config.items() if key != "class"}
    _check_names(arguments, by_class[name], f"{what} {name}")
    return by_class[name](**arguments)


def _parse(spec: str, known: Mapping[str, type], what: str) -> object:
    """`kind[:argument,...]`, where an argument is `key=value` or, as the first, the source itself."""
    kind, _, rest = spec.partition(":")
    if kind not in known:
        raise UserError(f"{what} {spec!r}: found {kind!r}, expected one of {', '.join(known)}")
    parameters = signature(known[kind]).parameters
    arguments: dict[str, Any] = {}
    for position, part in enumerate(rest.split(",") if rest else []):
        key, equals, value = part.partition("=")
        if position == 0 and "source" in parameters and key not in parameters:
            key, value = "source", part  # a folder's name may hold an equals sign
        elif not equals:
            raise UserError(f"{what} {spec!r}: found {part!r}, expected key=value")
        arguments[key] = value
    _check_names(arguments, known[kind], f"{what} {spec!r}")
    return known[kind](**{key: _converted(value, parameters[key], spec) for key, value in arguments.items()})


def _check_names(arguments: Mapping[str, Any], cls: type, what: str) -> None:
    """Refuse arguments that `cls` does not have and the lack of those that it needs."""
    parameters = signature(cls).parameters
    unknown = [key for key in arguments if key not in parameters]
    missing = [name for name, p in parameters.items() if p.default is Parameter.empty and name not in arguments]
    if unknown:
        raise UserError(f"{what}: found argument {unknown[0]!r}, expected {', '.join(parameters)}")
    if missing:
        raise UserError(f"{what}: expected {missing[0]}, found none")


def _converted(text: str, parameter: Parameter, spec: str) -> object:
    """Read `text` as the type of the parameter's default; a parameter without a plain default is a string."""
    if isinstance(parameter.default, bool):
        if text in ("true", "false"):
            return text == "true"
        raise UserError(f"{spec!r}: {parameter.name} is {text!r}, expected true or false")
    if isinstance(parameter.default, int):
        try:
            return int(text)
        except ValueError:
            raise UserError(f"{spec!r}: {parameter.name} is {text!r}, expected a whole number") from None
    return text
