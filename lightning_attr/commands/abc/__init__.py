"""The AbC benchmark: ``lightning-attr abc make|read|scores|table``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from lightning_attr.options import first_word

#: What is done with a set, in the order in which one does it; a module each.
ACTIONS = ("make", "read", "scores", "table")


def main(arguments: Sequence[str]) -> None:
    """Run the action that the first word names."""
    if (action := first_word("abc", arguments, ACTIONS)) is not None:
        import_module(f"lightning_attr.commands.abc.{action}").main(arguments[1:])
