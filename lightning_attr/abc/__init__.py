"""The AbC benchmark: images of customised models, whose influence is known by construction."""

from lightning_attr.abc.ranks import AbcRanks, MethodRanks, ranks_of
from lightning_attr.abc.set import AbcSet, CustomModel, of_split, write_set
from lightning_attr.abc.table import Line, lines, tables

__all__ = [
    "AbcRanks",
    "AbcSet",
    "CustomModel",
    "Line",
    "MethodRanks",
    "lines",
    "of_split",
    "ranks_of",
    "tables",
    "write_set",
]
