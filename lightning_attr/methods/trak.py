"""TRAK: ridge regression on projected gradients (Park et al., ICML 2023, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_attr.errors import expect_within
from lightning_attr.gradients import SampleGradients
from lightning_attr.methods.base import Batch, Context
from lightning_attr.methods.gradient_method import GradientMethod
from lightning_attr.methods.kernel import ridge_scores, weighed_ridge_scores
from lightning_attr.projection import Projection


class Trak(GradientMethod):
    """``Phi_q (Phi^T Phi + lambda)^-1 Phi^T``, Phi the gradients, projected or not.

    Without a projection it is the influence function of the exact empirical Fisher. With ``per_draw`` the features of
    every draw have a regression of their own, and the scores are summed.

    Args:
        projection: How many numbers are kept of a sample's gradient; None is the whole gradient.
        regularisation: Lambda, as a fraction of the samples' mean squared norm.
        projection_seed: Another seed is another projection.
        settings: The arguments of ``GradientMethod``.
    """

    def __init__(
        self, projection: int | None = 4096, regularisation: float = 0.1, projection_seed: int = 0, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.projection = projection
        expect_within("method.regularisation", regularisation, 0, 1e6)
        self.regularisation = regularisation
        self.projection_seed = projection_seed

    def prepare_queries(self, context: Context) -> None:
        """Take the queries' features: of each draw, or of their mean."""
        self._project: Callable[[SampleGradients], Tensor] = SampleGradients.flat
        if self.projection is not None:
            self._project = Projection(self._selected, self.projection, self.projection_seed)
        by_batch = [torch.stack([self._project(one) for one in each]) for each in self.gradients_of_queries(context)]
        self._features_DQR = torch.cat(by_batch, dim=1)

    def measure(self, batch: Batch) -> Tensor:
        """Return the features of a batch, those of all draws side by side, [B, draws * R]."""
        return torch.cat([self._project(one) for one in self.gradients(batch)], dim=1)

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Solve the regression of each draw, and yield the sums of the scores."""
        return ridge_scores(self._features_DQR, chunks, self.regularisation)

    def weighed(self, chunks: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
        """Solve the regression over all showings, and yield the scores of all of a sample's."""
        return weighed_ridge_scores(self._features_DQR, chunks, self.regularisation, weights)
