"""Attribution methods: each gives scores [queries, samples], higher = more influential."""

from lightning_attr.methods.base import Method
from lightning_attr.methods.random import Random
from lightning_attr.methods.similarity import Similarity

__all__ = ["Method", "Random", "Similarity"]
