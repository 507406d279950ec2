"""MUCS: mirrored unlearning and noise-consistent skew (2026)."""

from __future__ import annotations

from torch import Tensor

from lightning_attr.methods.unlearned import Unlearned

#: Keeps the skew finite where both losses are near zero.
SMALL = 1e-3


class Mucs(Unlearned):
    """The normalised skew ``(L_u - L_t) / (L_u + L_t + 1e-3)``, mean over draws, which all samples should share.

    The changed weights are those of ``MirroredUnlearning``. The arguments are those of ``Unlearned``.
    """

    kind = "mirrored weights"

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the skews."""
        return ((after - before) / (after + before + SMALL)).flatten(1).mean(1)
