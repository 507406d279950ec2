"""Where samples live and how they stream: the LMDB store, scores on disk, and the Lightning data module."""

from datamodules.errors import StoreError, UserError
from datamodules.grouped import GroupedLatents
from datamodules.latents import LatentDataModule
from datamodules.records import Field, Meta, Sample, Schema
from datamodules.scores import Scores, TopScores, load_scores
from datamodules.selection import Exclude, Subset, kept_positions
from datamodules.store import Store
from datamodules.writer import StoreWriter

__all__ = [
    "Exclude",
    "Field",
    "GroupedLatents",
    "LatentDataModule",
    "Meta",
    "Sample",
    "Schema",
    "Scores",
    "Store",
    "StoreError",
    "StoreWriter",
    "Subset",
    "TopScores",
    "UserError",
    "kept_positions",
    "load_scores",
]
