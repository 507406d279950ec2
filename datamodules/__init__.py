"""Where samples live and how they stream: the LMDB store and the Lightning data modules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datamodules.store import Field, Meta, Sample, Schema, Store, StoreWriter

if TYPE_CHECKING:
    from datamodules.grouped import GroupedLatents
    from datamodules.latents import LatentDataModule
    from datamodules.selection import Exclude, Subset, kept_positions

#: What is imported when it is asked for: Lightning takes seconds, and who reads a store needs none of it.
_LATER = {
    "GroupedLatents": "grouped",
    "LatentDataModule": "latents",
    "Exclude": "selection",
    "Subset": "selection",
    "kept_positions": "selection",
}

__all__ = [
    "Exclude",
    "Field",
    "GroupedLatents",
    "LatentDataModule",
    "Meta",
    "Sample",
    "Schema",
    "Store",
    "StoreWriter",
    "Subset",
    "kept_positions",
]


def __getattr__(name: str) -> Any:
    """Import what a name stands for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"datamodules.{_LATER[name]}"), name)
    return value
