"""Methods that compare losses before and after a query was unlearned: loss deltas, and the skew of MUCS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.methods.base import Context
from lightning_attr.methods.files_of_queries import check_shapes, digests, files_of_queries
from lightning_attr.methods.loss_comparison import LossComparison
from lightning_attr.noise import Draws


class Unlearned(LossComparison):
    """Compares losses under the model's weights with those under weights that a task has changed for each query.

    Attributes:
        kind: What the files of changed weights hold.

    Args:
        changed: The ``weights.safetensors`` of the queries, one file each; a pattern with ``*`` is fine, and may match
            files of several checkpoints.
        draws: Where losses are measured.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.
    """

    kind: ClassVar[str]

    def __init__(
        self, changed: InputPath, draws: Draws = Draws(), captions: int | None = 1, views: int | None = 1
    ) -> None:
        super().__init__(draws, captions, views)
        self.changed = changed

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the digests of the changed weights in the place of the pattern."""
        return {**super().settings(), "changed": digests(self.changed)}

    def prepare(self, context: Context) -> None:
        """Read the changed weights of every query, those of the context's model where there are some of several.

        Raises:
            UserError: A query has none or two, or they are of another task, model or query store.
        """
        super().prepare(context)
        by_query = files_of_queries("method.changed", self.changed, [self.kind], context)
        self._changed = [self._read(by_query[query]) for query in context.queries["id"].tolist()]

    def weights_of(self, place: int) -> Mapping[str, Tensor]:
        """Return what a file holds."""
        return self._changed[place]

    def _read(self, path: str) -> dict[str, Tensor]:
        """Return the changed weights in a file, on the CPU: all queries' may not fit the device."""
        weights, _ = load_tensors(path, self.kind)
        check_shapes(path, {name: tuple(value.shape) for name, value in weights.items()}, self._parameters)
        return weights
