"""The interface of an attribution method that scores many queries in one pass over the store.

Shapes: Q queries, B samples, V views, K captions, C x H x W a latent, R numbers kept of a sample; a batch is what
``LatentDataModule`` gives to ``predict``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.loading import whole_samples
from datamodules.store import Store
from lightning_attr.artifacts.inputs import input_paths
from lightning_attr.errors import UserError
from lightning_attr.features import Feature
from lightning_attr.features.base import Batch as Batch
from lightning_attr.models import Model


@dataclass(frozen=True)
class Context:
    """What a method may look at.

    Attributes:
        queries: ``latent`` [Q, 1, C, H, W], the conditions [Q, 1, ...], ``captions`` and ``id`` int64 [Q].
        query_store: Where they are from.
        store: The samples.
        model: The model that made the queries; None where the run names no checkpoint.
        device: Where to compute.
    """

    queries: Batch
    query_store: Store
    store: Store
    model: Model | None
    device: torch.device

    @classmethod
    def of(cls, query_store: Store, query_ids: Sequence[int], store: Store, device: torch.device) -> Context:
        """Return the context of some queries, each with its first view and caption, and of no model yet."""
        positions = query_store.positions(query_ids)
        queries = whole_samples(query_store, positions)
        queries |= {name: queries[name][:, :1] for name in query_store.schema.inputs}
        queries["captions"] = queries["captions"].clamp(max=1)
        return cls({name: value.to(device) for name, value in queries.items()}, query_store, store, None, device)

    def trained(self) -> Model:
        """Return the model, for a method that cannot do without.

        Raises:
            UserError: The run names no checkpoint.
        """
        if self.model is None:
            raise UserError("model.checkpoints: found none, expected the checkpoint that the method looks at")
        return self.model


class Method(ABC):
    """Scores samples for queries; the constructor's arguments are its settings, and attributes of the same names.

    ``prepare`` comes first, then ``measure`` for every batch of the store, then ``score`` over all that was measured.
    What ``measure`` returns is kept in chunks on disk, so that a long pass goes on after a stop. A method that would
    hold too much at once goes over the store in several passes, and ``enter`` begins each.
    """

    @property
    def name(self) -> str:
        """Return what tables and figures call it."""
        return type(self).__name__.lower()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain values."""
        return {name: plain(value) for name, value in vars(self).items() if not name.startswith("_")}

    def inputs(self) -> dict[str, str]:
        """Return the files that settings name as such, by the names of the settings; a name of the hub is none."""
        return {name: path for name, path in input_paths(type(self), self.settings()) if Path(path).exists()}

    def prepare(self, context: Context) -> None:  # noqa: B027 (some methods need no preparation)
        """Get ready for the queries; attributes that it sets begin with an underscore."""

    @property
    def passes(self) -> int:
        """Return how often the method goes over the samples."""
        return 1

    def enter(self, index: int) -> None:  # noqa: B027 (most methods have one pass)
        """Begin a pass, or go on with it."""

    @abstractmethod
    def measure(self, batch: Batch) -> Tensor:
        """Return what a pass keeps of each sample of a batch, [B, R]; for most methods its score for every query."""

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the scores [Q, B] of every chunk of what was measured, in its order; higher = more influential.

        Args:
            chunks: What ``measure`` returned, [B, R] each, that of several passes side by side; read from disk when
                asked for, and may be read several times.
        """
        for rows in chunks:
            yield rows.T

    @property
    def is_influence(self) -> bool:
        """Return whether a score is what one showing of a sample did in training, and not how alike two images are."""
        return False

    def weighed(self, chunks: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the scores [Q, B] of every chunk, of all showings of a sample if they are influence.

        Args:
            chunks: As of :meth:`score`.
            weights: How often training shows each sample in an epoch, int64 [B] of every chunk.
        """
        for scores, weight in zip(self.score(chunks), weights, strict=True):
            yield scores * weight.to(scores) if self.is_influence else scores


@dataclass(frozen=True)
class Columns(Sequence[Tensor]):
    """Some columns of every chunk, side by side: those between the edges."""

    chunks: Sequence[Tensor]
    edges: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.chunks)

    def __getitem__(self, index: Any) -> Any:
        """Return these columns of a chunk."""
        rows = self.chunks[index]
        parts = [rows[:, start:stop] for start, stop in self.edges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def plain(value: Any) -> Any:
    """Return a setting as JSON can hold it."""
    if isinstance(value, Method):
        return {"method": value.name, **value.settings()}
    if isinstance(value, Feature):
        return value.config()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def expect_counts(where: str, **counts: int | None) -> None:
    """Raise ``UserError`` for a number of captions or views below one; None is all of them."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{where}.{name}: found {count}, expected at least 1, or null for all")
