"""Make a store, or a model's folder: ``lightning-attr prepare coco|drawings|images|model|queries|shapes``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from lightning_attr.errors import UserError

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
    source = arguments[0] if arguments else "nothing"
    if source in ("-h", "--help"):
        print(f"usage: lightning-attr prepare {{{','.join(SOURCES)}}} ...; each has its own --help")
        return
    if source not in SOURCES:
        raise UserError(f"prepare: found {source!r}, expected one of {', '.join(SOURCES)}")
    import_module(f"lightning_attr.commands.prepare.{SOURCES[source]}").main(arguments[1:])
