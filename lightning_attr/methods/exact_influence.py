"""The influence function of the exact empirical Fisher, from the kernel of whole gradients."""

from __future__ import annotations

from typing import Any

from lightning_attr.methods.trak import Trak


class ExactInfluence(Trak):
    """``grad L(query)^T (F + lambda)^-1 grad L(sample)``, F the sum of the outer products of the samples' gradients.

    Neither a projection nor a structure is assumed. Whole gradients are kept of every sample, and where they are longer
    than the store is large, the N x N matrix of their inner products must fit memory.

    Args:
        regularisation: Lambda, as a fraction of the samples' mean squared norm.
        settings: The arguments of ``GradientMethod``.
    """

    def __init__(self, regularisation: float = 0.1, **settings: Any) -> None:
        super().__init__(projection=None, regularisation=regularisation, projection_seed=0, **settings)

    @property
    def base_name(self) -> str:
        """Return ``influence-exact``."""
        return "influence-exact"
