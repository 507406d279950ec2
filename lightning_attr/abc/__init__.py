"""The AbC benchmark: images of customised models, whose influence is known by construction."""

from lightning_attr.abc.set import AbcSet, CustomModel, write_set

__all__ = ["AbcSet", "CustomModel", "write_set"]
