"""The LMDB store: one file of samples, every byte of which is checked when it is read."""

from datamodules.store.reader import Store
from datamodules.store.records import Field, Meta, Sample, Schema
from datamodules.store.writer import StoreWriter

__all__ = ["Field", "Meta", "Sample", "Schema", "Store", "StoreWriter"]
