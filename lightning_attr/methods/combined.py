"""Several methods at once: the sum of their standardised scores.

Shapes: Q queries, N samples in all, B samples of a batch, R numbers kept of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.methods.base import Batch, Columns, Context, Method


class Combined(Method):
    """The sum of the methods' scores, each standardised over the samples: mean 0 and deviation 1 for every query.

    Args:
        methods: The methods.
    """

    def __init__(self, methods: list[Method]) -> None:
        if len(methods) < 2:
            raise UserError(f"method.methods: found {len(methods)}, expected at least two")
        self.methods = methods

    @property
    def name(self) -> str:
        """Return the methods' names, joined by ``+``."""
        return "+".join(method.name for method in self.methods)

    def inputs(self) -> dict[str, str]:
        """Return the files of all methods."""
        of_methods = enumerate(method.inputs() for method in self.methods)
        return {f"methods.{index}.{name}": path for index, files in of_methods for name, path in files.items()}

    def prepare(self, context: Context) -> None:
        """Prepare every method."""
        for method in self.methods:
            method.prepare(context)

    @property
    def passes(self) -> int:
        """Return the number of all methods' passes, which come one after the other."""
        return sum(method.passes for method in self.methods)

    def enter(self, index: int) -> None:
        """Begin a pass of a method."""
        passes = [(method, of_method) for method in self.methods for of_method in range(method.passes)]
        self._current, of_method = passes[index]
        self._current.enter(of_method)

    def measure(self, batch: Batch) -> Tensor:
        """Return what the method that was entered keeps, and last the number of its columns, [B, R + 1]."""
        # Half precision must neither round the width nor the rows of another method.
        rows = self._current.measure(batch).float()
        return torch.cat([rows, rows.new_full([len(rows), 1], rows.shape[1])], dim=1)

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the sums of the standardised scores."""
        return self._sums(chunks, lambda method, part: method.score(part))

    def weighed(self, chunks: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the sums, in which each method has its samples' weights before its scores are standardised."""
        return self._sums(chunks, lambda method, part: method.weighed(part, weights))

    def _sums(
        self, chunks: Sequence[Tensor], scores: Callable[[Method, Sequence[Tensor]], Iterator[Tensor]]
    ) -> Iterator[Tensor]:
        """Yield the sums; the scores are gone through twice, first for their means and deviations.

        Keeping them would form the whole matrix [Q, N], which ``topk`` is there to avoid.
        """
        pairs = list(zip(self.methods, self._parts(chunks), strict=True))
        moments = [_moments(scores(method, part)) for method, part in pairs]
        for by_method in zip(*(scores(method, part) for method, part in pairs), strict=True):
            standardised = [
                (one.double() - mean) / deviation for one, (mean, deviation) in zip(by_method, moments, strict=True)
            ]
            yield torch.stack(standardised).sum(0).float()

    def _parts(self, chunks: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Return the columns of each method, found from the last on: behind those of a pass is their number."""
        first, end, parts = chunks[0][0], chunks[0].shape[1], list[Sequence[Tensor]]()
        for method in reversed(self.methods):
            edges = []
            for _ in range(method.passes):
                edges.append((end - 1 - int(first[end - 1]), end - 1))
                end = edges[-1][0]
            parts.append(Columns(chunks, edges[::-1]))
        return parts[::-1]


def _moments(scores: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation over all samples, float64 [Q, 1] each; where all are equal, a deviation of 1."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for one in scores:
        count += one.shape[1]
        total = total.to(one.device) + one.double().sum(1, keepdim=True)
        squares = squares.to(one.device) + one.double().square().sum(1, keepdim=True)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean, torch.where(deviation > 0, deviation, 1)
