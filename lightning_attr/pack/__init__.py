"""The pack of a sweep: its finished ground truth in two files."""

from lightning_attr.pack.collect import collect
from lightning_attr.pack.pack import Model, Pack, pack_files, unpack

__all__ = ["Model", "Pack", "collect", "pack_files", "unpack"]
