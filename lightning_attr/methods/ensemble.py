"""One method on several models: the mean of its scores (TRAK, section 3).

Shapes: Q queries, B samples, R numbers that a member keeps of a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.methods.base import Batch, Columns, Context, Method
from lightning_attr.models import Model


class Ensemble(Method):
    """A method on each of several models, one after the other; the scores are the mean over them.

    Args:
        method: The method, yet unprepared; the ensemble has its name and settings.
        models: The models; with none, the method runs once without one.
    """

    def __init__(self, method: Method, models: Sequence[Model] = ()) -> None:
        self._method = method
        self._models: Sequence[Model | None] = models or [None]
        self._members: list[Method] = []

    @property
    def name(self) -> str:
        """Return the name of the method."""
        return self._method.name

    def settings(self) -> dict[str, Any]:
        """Return the settings of the method."""
        return self._method.settings()

    def prepare(self, context: Context) -> None:
        """Prepare the method for each model.

        Raises:
            UserError: There are several models, but the method looks at none.
        """
        self._members = []
        for model in self._models:
            watched = _Watched(**{**vars(context), "model": model})
            member = deepcopy(self._method)
            member.prepare(watched)
            if len(self._models) > 1 and not watched.asked:
                raise UserError(
                    f"model.checkpoints: found {len(self._models)}, expected at most one: {self.name} looks at no model"
                )
            self._members.append(member)

    @property
    def passes(self) -> int:
        """Return the number of all members' passes."""
        return len(self._models) * self._method.passes

    def enter(self, index: int) -> None:
        """Begin a pass of a member."""
        member, of_member = divmod(index, self._method.passes)
        self._current = self._members[member]
        self._current.enter(of_member)

    def measure(self, batch: Batch) -> Tensor:
        """Return the rows of the member that was entered, [B, R]."""
        return self._current.measure(batch)

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the mean of the members' scores, [Q, B]."""
        yield from self._mean(member.score(rows) for member, rows in self._parts(chunks))

    def weighed(self, chunks: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the mean of what the members give, [Q, B]."""
        yield from self._mean(member.weighed(rows, weights) for member, rows in self._parts(chunks))

    def _parts(self, chunks: Sequence[Tensor]) -> Iterator[tuple[Method, Sequence[Tensor]]]:
        """Yield each member with its columns."""
        width = chunks[0].shape[1] // len(self._members)
        for index, member in enumerate(self._members):
            yield member, Columns(chunks, [(index * width, (index + 1) * width)])

    def _mean(self, scores: Iterable[Iterator[Tensor]]) -> Iterator[Tensor]:
        for parts in zip(*scores, strict=True):
            yield torch.stack(parts).mean(0)


@dataclass(frozen=True)
class _Watched(Context):
    """A context that notes whether the method asks for its model."""

    asked: list[bool] = field(default_factory=list)

    def trained(self) -> Model:
        self.asked.append(True)
        return super().trained()
