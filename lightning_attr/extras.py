"""Libraries that are optional, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning_attr.errors import UserError, one_line


def optional(module: str, extra: str, what: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: Its name.
        extra: The extra of this project that installs it.
        what: What needs it, for the message.

    Raises:
        UserError: It cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise UserError(
            f"{what}: {library} cannot be imported ({one_line(error)}); "
            f"install it with: pip install 'lightning-attr[{extra}]'"
        ) from error
