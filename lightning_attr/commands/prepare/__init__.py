"""Make a store, or a model's folder: ``lightning-attr prepare coco|drawings|images|model|queries|shapes``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from lightning_attr.options import first_word

SOURCES = {
    "coco": "coco",
    "drawings": "drawings",
    "images": "any_source",
    "model": "model",
    "queries": "queries",
    "shapes": "shapes",
}


def main(arguments: Sequence[str]) -> None:
    """Run the command of the source that the first word names."""
    if (source := first_word("prepare", arguments, SOURCES)) is not None:
        import_module(f"lightning_attr.commands.prepare.{SOURCES[source]}").main(arguments[1:])
