"""Adapters: weights and words laid over a base model, read from files of others."""

from lightning_attr.adapters.adapter import Adapter, read_adapter
from lightning_attr.adapters.lora import Low, lay_over

__all__ = ["Adapter", "Low", "lay_over", "read_adapter"]
