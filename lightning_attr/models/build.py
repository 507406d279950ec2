"""Build a class of diffusers from a config, with messages that name the key."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from lightning_attr.errors import UserError, one_line


def build_class(key: str, config: Mapping[str, Any], base: type) -> Any:
    """Build what ``_class_name`` names, as in a diffusers ``config.json``; private keys are not arguments.

    Args:
        key: Where the config stands, for messages.
        config: ``_class_name`` and the arguments.
        base: What the class must be one of: diffusers has others, which load code or ask the hub.

    Raises:
        UserError: The class or one of its arguments does not exist, or it refuses them.
    """
    if strange := [name for name in config if not isinstance(name, str)]:
        raise UserError(f"{key}: found the key {strange[0]!r}, expected names")
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    name = config["_class_name"]
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not inspect.isclass(cls) or not issubclass(cls, base):
        raise UserError(f"{key}: found class {name!r}, expected a {base.__name__} of diffusers")
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    if unknown := sorted(set(arguments) - known):
        raise UserError(
            f"{key}: found {', '.join(unknown)}, which {name} does not take; it takes {', '.join(sorted(known))}"
        )
    try:
        return cls(**arguments)
    except Exception as error:  # what a constructor of diffusers makes of arguments that do not fit is its own
        raise UserError(f"{key}: {name} refuses its arguments: {one_line(error)}") from error
