"""What becomes of every sample's loss where the weights move along a query's direction.

Shapes: Q queries, B samples, V views, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.errors import UserError, expect_within
from lightning_attr.losses import sample_losses
from lightning_attr.methods.base import Batch, Context
from lightning_attr.methods.directions import MADE_BY, kind_of_directions, read_directions
from lightning_attr.methods.files_of_queries import digests
from lightning_attr.methods.loss_comparison import LossComparison
from lightning_attr.noise import Draws, of_query
from lightning_attr.precision import outside_autocast

#: The first move along a direction, as a share of the weights' norm; it is doubled until it is enough.
FIRST = 1e-5
#: How often a move is tried and doubled at most: the last that is tried is five times as long as the weights.
DOUBLINGS = 20
#: How often the last doubling is halved: the move is exact to 2%.
HALVINGS = 6


class Measured(LossComparison):
    """Loss deltas where the weights have moved along a query's direction, until its own loss has risen by a share.

    ``Directed`` takes the samples' losses as linear in the weights; this measures them, by one loss sweep per query.
    All queries are then as much forgotten, however long their directions are.

    Args:
        directions: As of ``Directed``.
        rise: By which share of itself the query's loss rises: that of the whole image, also where directions are of a
            region.
        draws: Where losses are measured, that of the query as well.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.

    Raises:
        UserError: There is no such file, or one holds neither, or another than the first.
    """

    def __init__(
        self,
        directions: InputPath,
        rise: float = 0.1,
        draws: Draws = Draws(),
        captions: int | None = 1,
        views: int | None = 1,
    ) -> None:
        super().__init__(draws, captions, views)
        expect_within("method.rise", rise, 1e-3, 1000)
        self.directions = directions
        self.rise = rise
        self._kind = kind_of_directions(directions)

    @property
    def name(self) -> str:
        """Return what made the directions, such as ``virtual-steps-measured``."""
        return f"{MADE_BY[self._kind]}-measured"

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the digests of the files in the place of the pattern."""
        return {**super().settings(), "directions": digests(self.directions)}

    def prepare(self, context: Context) -> None:
        """Read the direction of every query, and find how far to go.

        Raises:
            UserError: A query has none or two, or they are of another model, store, query store, or of other weights;
                or its loss does not rise.
        """
        super().prepare(context)
        self._rows = read_directions(self.directions, self._kind, self._parameters, context)
        self._moves = [self._move(context.queries, place) for place in range(self._count)]

    def weights_of(self, place: int) -> Mapping[str, Tensor]:
        """Return the weights where the query's loss has risen."""
        return self._moved(place, self._moves[place])

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the loss deltas, mean over views and draws."""
        return (after.double() - before.double()).flatten(1).mean(1).float()

    @outside_autocast
    @torch.no_grad()
    def _move(self, queries: Batch, place: int) -> float:
        """Return how far the query's loss has risen enough, in lengths of its direction."""
        query = {name: value[place : place + 1] for name, value in queries.items()}
        query["id"] = of_query(query["id"])
        target = (1 + self.rise) * self._loss(query)
        length = float(torch.stack([row[place].norm() for row in self._rows.values()]).norm())
        weights = float(torch.stack([self._parameters[name].norm() for name in self._rows]).norm())
        low, high = 0.0, FIRST * weights / length if length else 0.0
        for _ in range(DOUBLINGS):
            if not self._loss_at(query, place, high) < target:  # one that is no number is beyond it
                break
            low, high = high, 2 * high
        else:
            raise UserError(
                f"method.directions {self.directions}: the loss of query {int(queries['id'][place])} does not rise by "
                f"{self.rise:g} of itself along its direction"
            )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._loss_at(query, place, middle) < target else (low, middle)
        return high

    def _loss_at(self, query: Batch, place: int, move: float) -> float:
        with self.changed_to(self._moved(place, move)):
            return self._loss(query)

    def _loss(self, query: Batch) -> float:
        return float(sample_losses(self._model, query, self.draws, views=1, captions=1).mean())

    def _moved(self, place: int, move: float) -> dict[str, Tensor]:
        parameters = self._parameters
        return {name: parameters[name] + move * row[place].to(parameters[name]) for name, row in self._rows.items()}
