"""What fine-tuning taught a model of each sample, whatever the query: a control.

Shapes: Q queries, B samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.errors import UserError
from lightning_attr.losses import sample_losses
from lightning_attr.methods.base import Batch, Context, Method, expect_counts
from lightning_attr.models import load
from lightning_attr.noise import Draws
from lightning_attr.precision import outside_autocast


class Learned(Method):
    """A sample's loss under the base minus that under the fine-tuned model, the same for all queries.

    It tells what the model was tuned on from what it was not, and nothing about a query: where all queries of a model
    have the same right answer, as in AbC, a method that looks at the model can come by it in this way alone.

    Args:
        base: What the model was fine-tuned from, as a task's ``checkpoint``.
        draws: Where losses are measured.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.
    """

    def __init__(
        self, base: InputPath, draws: Draws = Draws(), captions: int | None = 1, views: int | None = 1
    ) -> None:
        expect_counts("method", captions=captions, views=views)
        self.base = base
        self.draws = draws
        self.captions = captions
        self.views = views

    def prepare(self, context: Context) -> None:
        """Load the base.

        Raises:
            UserError: The model was not fine-tuned from it.
        """
        self._model = context.trained()
        base = load(self.base)
        if base.digest != self._model.made_from.get("base"):
            raise UserError(
                f"method.base: found {self.base} ({base.digest}), expected what {self._model.path} was fine-tuned from"
            )
        self._base, self._queries = base.to(context.device), len(context.queries["id"])

    # In low precision a small change of the losses would be rounded away.
    @outside_autocast
    @torch.no_grad()
    def measure(self, batch: Batch) -> Tensor:
        """Return the scores, [B, Q]."""
        before, after = (
            sample_losses(model, batch, self.draws, self.views, self.captions) for model in (self._base, self._model)
        )
        return (before - after).flatten(1).mean(1, keepdim=True).expand(-1, self._queries)
