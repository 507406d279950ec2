"""The pack of a sweep: its finished ground truth in two files."""

from lightning_attr.pack.collect import collect
from lightning_attr.pack.pack import UNATTRIBUTED, Model, Pack, pack_files, unpack

__all__ = ["UNATTRIBUTED", "Model", "Pack", "collect", "pack_files", "unpack"]
