"""What the methods have in common that compare per-sample gradients with those of queries.

Shapes: Q queries, B samples, H x W places of a latent.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.console import warn
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output, SampleGradients, draw_gradients, sample_gradients
from lightning_attr.layers import linear_weights
from lightning_attr.methods.base import Batch, Context, Method, expect_counts
from lightning_attr.noise import Draws, of_query
from lightning_attr.precision import outside_autocast
from lightning_attr.region import read_region

#: The most queries whose gradients are computed together, and the most bytes that these may have, but for one query.
QUERY_BATCH, QUERY_BYTES = 64, 2**30


class GradientMethod(Method):
    """Compares gradients of an output of the model, by some of its weights, of queries and of samples.

    Args:
        output: What is differentiated.
        weights: ``adapter``, ``cross_kv``, ``cross_attention``, ``attention``, ``matrices`` (of all linear layers and
            convolutions), ``all``, or a regular expression; None is the adapter's where there is one, else
            ``cross_kv``.
        captions: Only the first so many captions of each sample; None is all.
        views: Only the first so many views of each sample; None is all.
        per_draw: Compare the gradients at each draw, and sum what comes out, instead of the gradients' means over
            draws. A sample then counts where it changes the model at the query's own timesteps and noises, which is
            what shared draws are for.
        query: The draws of queries; None is those of samples. A ``window`` asks about some timesteps only. With
            ``per_draw`` each draw of a query is compared with the same draw of a sample, so that there are no others:
            the window then belongs in ``output.draws``.
        region: A greyscale image; the brighter a place, the more of it is asked about. None is the whole query.
    """

    _only: int | None = None  # the draw to take, where that is not all

    def __init__(
        self,
        output: Output = Output(),
        weights: str | None = None,
        captions: int | None = 1,
        views: int | None = 1,
        per_draw: bool = False,
        query: Draws | None = None,
        region: InputPath | None = None,
    ) -> None:
        expect_counts("method", captions=captions, views=views)
        self.output = output
        self.weights = weights
        self.captions = captions
        self.views = views
        self.per_draw = per_draw
        self.query = query
        self.region = region
        if per_draw and query not in (None, output.draws):
            raise UserError(
                "method.query: found other draws than method.output.draws, expected the same: method.per_draw compares "
                "draw by draw; a window for both belongs in method.output.draws"
            )

    @property
    def base_name(self) -> str:
        """Return what the method is called when gradients' means are compared."""
        return type(self).__name__.lower()

    @property
    def name(self) -> str:
        """Return the base name, then ``-normalised`` where that is done, and ``-per-draw`` where draws are compared."""
        normalised = "-normalised" if self.output.normalised else ""
        return f"{self.base_name}{normalised}{'-per-draw' if self.per_draw else ''}"

    @property
    def is_influence(self) -> bool:
        """Return true: products with a sample's gradient add up over its showings."""
        return True

    def prepare(self, context: Context) -> None:
        """Select the weights and take the gradients of the queries."""
        self._model = context.trained()
        self._selected = self._model.select(self.weights)
        if linear_weights(self._model.network, self._selected) is None:
            warn("weights: not all of linear layers; per-sample gradients go through torch.func, which is slow")
        self.prepare_queries(context)

    @abstractmethod
    def prepare_queries(self, context: Context) -> None:
        """Make of the queries' gradients what ``measure`` or ``score`` needs."""

    def gradients(self, batch: Batch) -> Iterator[SampleGradients]:
        """Yield the gradients of a batch of samples: of each draw with ``per_draw``, else one, their mean."""
        return self._take(batch, self.output, self.views, self.captions)

    def gradients_of_queries(self, context: Context) -> Iterator[Iterator[SampleGradients]]:
        """Yield for some queries at a time what :meth:`gradients` yields for a batch of samples."""
        region, output = self.query_region(context), replace(self.output, draws=self.query or self.output.draws)
        bytes_each = sum(weight.nbytes for weight in self._selected.values())
        batch = max(1, min(QUERY_BATCH, QUERY_BYTES // bytes_each))
        for start in range(0, len(context.queries["id"]), batch):
            some = {name: value[start : start + batch] for name, value in context.queries.items()}
            yield self._take(self.query_batch(replace(context, queries=some)), output, region=region)

    def query_gradients(
        self, context: Context, precondition: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    ) -> list[dict[str, Tensor]]:
        """Return the gradients of all queries by weight name, [Q, *shape]: of each draw, or one, their mean.

        Args:
            context: With the queries.
            precondition: Applied to some queries' gradients at a time, for those of all may fill the memory.
        """

        def rows(one: SampleGradients) -> dict[str, Tensor]:
            named = dict(one.named())
            return named if precondition is None else precondition(named)

        by_batch = [[rows(one) for one in each] for each in self.gradients_of_queries(context)]
        if len(by_batch) == 1:
            return by_batch[0]
        # Each part is let go as soon as it is joined, so that all are never held twice.
        return [
            {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
            for parts in zip(*by_batch, strict=True)
        ]

    def query_batch(self, context: Context) -> Batch:
        """Return the context's queries as a batch of samples."""
        return {**context.queries, "id": of_query(context.queries["id"])}

    def query_region(self, context: Context) -> Tensor | None:
        """Return how much each place of the queries' latents counts, [H, W]."""
        if self.region is None:
            return None
        return read_region(self.region, context.queries["latent"].shape[-2:]).to(context.device)

    def _take(
        self,
        batch: Batch,
        output: Output,
        views: int | None = None,
        captions: int | None = None,
        region: Tensor | None = None,
    ) -> Iterator[SampleGradients]:
        arguments = (self._model, self._selected, batch, output, views, captions, region)
        if self.per_draw:
            yield from draw_gradients(*arguments, only=self._only)
        else:
            yield sample_gradients(*arguments)


@outside_autocast
def products(rows: Mapping[str, Tensor], gradients: SampleGradients) -> Tensor:
    """Return the inner products of queries [Q, *shape] by name with per-sample gradients, [B, Q]."""
    return torch.stack([each.flatten(1) @ rows[name].flatten(1).T for name, each in gradients.named()]).sum(0)
