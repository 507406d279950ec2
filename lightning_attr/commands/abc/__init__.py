"""The AbC benchmark: ``lightning-attr abc make|read|scores|table``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from lightning_attr.errors import UserError

#: What is done with a set, in the order in which one does it; a module each.
ACTIONS = ("make", "read", "scores", "table")


def main(arguments: Sequence[str]) -> None:
    """Run the action that the first word names."""
    action = arguments[0] if arguments else "nothing"
    if action in ("-h", "--help"):
        print(f"usage: lightning-attr abc {{{','.join(ACTIONS)}}} ...; each has its own --help")
        return
    if action not in ACTIONS:
        raise UserError(f"abc: found {action!r}, expected one of {', '.join(ACTIONS)}")
    import_module(f"lightning_attr.commands.abc.{action}").main(arguments[1:])
