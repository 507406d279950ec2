"""One-pass influence: unlearning to first order, for all queries at once.

Shapes: Q queries, B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import digest_of
from lightning_attr.curvature import AnyCurvature, Damping, curvature_digest, load_curvature
from lightning_attr.errors import UserError
from lightning_attr.methods.base import Batch, Context, plain
from lightning_attr.methods.gradient_method import GradientMethod, products
from lightning_attr.models import Model
from lightning_attr.precision import outside_autocast


class Influence(GradientMethod):
    """``grad L(query)^T F^-1 grad L(sample)``: the loss delta of one small step of unlearning, to first order.

    The inverse curvature is applied to the queries' gradients once; one pass over the samples then scores all queries.
    With ``per_draw`` the product is taken at each draw, and summed. Each draw has a pass of its own, so that the rows
    of one alone are held. Every gradient is taken once as in one pass for all draws, and is the same to the bit; only
    the samples are read once a draw. The last bits of sums over many draws depend on the size of the chunks.

    Args:
        curvature: A curvature file: diagonal, K-FAC or EK-FAC. For several checkpoints a file of each, in any order.
            For weights that a fine-tuned model's base has as well, it may be the base's.
        damping: Added to the curvature before it is inverted.
        settings: The arguments of ``GradientMethod``.
    """

    def __init__(
        self, curvature: InputPath | list[InputPath], damping: Damping = Damping(0.1, "mean"), **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.curvature = curvature
        self.damping = damping
        self._fitted = [_Fitted.of(path) for path in ([curvature] if isinstance(curvature, str) else curvature)]
        kinds = [each.curvature.kind for each in self._fitted]
        if len(set(kinds)) != 1:
            raise UserError(f"method.curvature: found kinds {kinds}, expected at least one file, and all of one kind")

    @property
    def base_name(self) -> str:
        """Return ``influence-diagonal``, ``influence-kfac`` or ``influence-ekfac``."""
        return f"influence-{self._fitted[0].curvature.kind}"

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the curvature's own and its digest in the place of its file's name."""
        fitted = [each.settings() for each in self._fitted]
        return {**super().settings(), "curvature": fitted[0] if isinstance(self.curvature, str) else fitted}

    def prepare_queries(self, context: Context) -> None:
        """Find the curvature of the model, and take the rows of the first pass.

        Raises:
            UserError: The curvature was fitted on another checkpoint.
        """
        self._context, self._inverse = context, self._curvature_of(context.trained()).inverse
        self._entered = -1
        self.enter(0)

    @property
    def passes(self) -> int:
        """Return the number of draws that are compared one by one."""
        return len(self.output.draws) if self.per_draw else 1

    @outside_autocast
    def enter(self, index: int) -> None:
        """Apply the inverse curvature to the queries' gradients of a pass, unless they are there."""
        if index == self._entered:
            return
        self._entered, self._rows = index, dict[str, Tensor]()  # lets go of those before
        self._only = index if self.per_draw else None
        (self._rows,) = self.query_gradients(self._context, lambda rows: self._inverse(rows, self.damping))

    def _curvature_of(self, model: Model) -> AnyCurvature:
        """Return the curvature that was fitted on the model; one alone may keep silent about that, as kronfluence's."""
        if len(self._fitted) == 1 and not (self._fitted[0].checkpoint and model.digest):
            return self._fitted[0].curvature
        for digest in model.lineage:
            for each in self._fitted:
                if each.checkpoint == digest:
                    return each.curvature
        found = ", ".join(f"{each.path} (fitted on {each.checkpoint})" for each in self._fitted)
        raise UserError(
            f"method.curvature: found {found}, expected one fitted on checkpoint {model.path} ({model.digest})"
        )

    def measure(self, batch: Batch) -> Tensor:
        """Return the products of a pass, [B, Q]."""
        (gradients,) = self.gradients(batch)
        return products(self._rows, gradients)

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the scores [Q, B]: the sums over passes."""
        for rows in chunks:
            yield torch.stack(rows.chunk(self.passes, dim=1)).sum(0).T


class _Fitted(NamedTuple):
    """A curvature, and where it is from."""

    path: str
    curvature: AnyCurvature
    digest: str

    @classmethod
    def of(cls, path: str) -> _Fitted:
        return cls(path, load_curvature(path), curvature_digest(path))

    @property
    def checkpoint(self) -> str | None:
        """Return the digest of the checkpoint that it was fitted on."""
        return digest_of(self.curvature.settings, "checkpoint")

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = plain({**self.curvature.settings, "kind": self.curvature.kind})
        return {**settings, "digest": self.digest}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Fitted:
        """Share it, for it never changes and may be large: an ensemble copies its method for every model."""
        return self
