"""Build a class of diffusers from a config, with messages that name the key."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from lightning_attr.errors import UserError, one_line


def build_class(key: str, config: Mapping[str, Any]) -> Any:
    """Build what ``_class_name`` names, as in a diffusers ``config.json``; private keys are not arguments.

    Raises:
        UserError: The class or one of its arguments does not exist, or it refuses them.
    """
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    name = config["_class_name"]
    cls = getattr(diffusers, name, None)
    if not inspect.isclass(cls):
        raise UserError(f"{key}: found class {name!r}, expected one of diffusers")
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    if unknown := sorted(set(arguments) - known):
        raise UserError(
            f"{key}: found {', '.join(unknown)}, which {name} does not take; it takes {', '.join(sorted(known))}"
        )
    try:
        return cls(**arguments)
    except Exception as error:  # what a constructor of diffusers makes of arguments that do not fit is its own
        raise UserError(f"{key}: {name} refuses its arguments: {one_line(error)}") from error
