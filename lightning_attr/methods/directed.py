"""The products of directions, how the weights would have to move for each query, and of the samples' gradients.

Shapes: Q queries, B samples.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.gradients import Output, sample_gradients
from lightning_attr.methods.base import Batch, Context, Method, expect_counts
from lightning_attr.methods.directions import MADE_BY, kind_of_directions, read_directions
from lightning_attr.methods.files_of_queries import digests
from lightning_attr.methods.gradient_method import products


class Directed(Method):
    """The product of a query's direction and a sample's gradient: one pass for all queries, whatever made directions.

    A direction is a change of the weights that raises the query's loss. Those of ``VirtualSteps`` and
    ``ReplayedSteps`` lie in one file, for any number of queries. Of changed weights, by ``Unlearning`` or
    ``MirroredUnlearning``, it is what they differ from the model's by: the scores are then the loss deltas to first
    order, without a loss sweep for each query.

    Args:
        directions: ``directions.safetensors``, or the ``weights.safetensors`` of changed weights; a pattern with ``*``
            is fine, and may match files of several checkpoints.
        output: What of the samples is differentiated, and at which draws.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.

    Raises:
        UserError: There is no such file, or one holds neither, or another than the first.
    """

    def __init__(
        self, directions: InputPath, output: Output = Output(), captions: int | None = 1, views: int | None = 1
    ) -> None:
        expect_counts("method", captions=captions, views=views)
        self.directions = directions
        self.output = output
        self.captions = captions
        self.views = views
        self._kind = kind_of_directions(directions)

    @property
    def name(self) -> str:
        """Return what made the directions, such as ``virtual-steps`` or ``mucs-direction``."""
        return f"{MADE_BY[self._kind]}{'-normalised' if self.output.normalised else ''}"

    @property
    def is_influence(self) -> bool:
        """Return true: products with a sample's gradient add up over its showings."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the digests of the files in the place of the pattern."""
        return {**super().settings(), "directions": digests(self.directions)}

    def prepare(self, context: Context) -> None:
        """Read the direction of every query.

        Raises:
            UserError: A query has none or two, or they are of another model, store, query store, or of other weights.
        """
        self._model = context.trained()
        parameters = dict(self._model.network.named_parameters())
        rows = read_directions(self.directions, self._kind, parameters, context)
        self._selected = {name: parameters[name] for name in rows}
        self._rows = {name: value.to(context.device) for name, value in rows.items()}

    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        gradients = sample_gradients(self._model, self._selected, batch, self.output, self.views, self.captions)
        return products(self._rows, gradients)
