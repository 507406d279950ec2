"""Where samples live and how they stream: the LMDB store and the Lightning data modules."""

from datamodules.grouped import GroupedLatents
from datamodules.latents import LatentDataModule
from datamodules.selection import Exclude, Subset, kept_positions
from datamodules.store import Field, Meta, Sample, Schema, Store, StoreWriter

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
