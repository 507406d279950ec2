"""From a store to batches: what a batch is, in which order batches come, and how that order is taken up again.

Shapes: N samples in all, B of a batch, V views, C, H, W latent channels, height, width; K captions. A batch has the
latent and all conditions of the store by their names; "text", T tokens of D numbers, stands here for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from xxhash import xxh3_64_hexdigest

from datamodules.hashing import choices, showing_ids, shuffled
from datamodules.store import Store
from lightning_attr.errors import StoreError, UserError

Ints = NDArray[np.int64]
Batch = dict[str, Tensor]
Key = tuple[int, Ints]
"""Epoch and positions of a batch, of samples or of their showings: all that its contents depend on."""


class TrainBatches(Dataset[Batch]):
    """Batches for training: one view and one caption of each showing of a sample, chosen anew each epoch.

    A sample has as many showings in an epoch as its weight says. They lie one after the other, in the order of the
    store, and the positions of a key are theirs; where the store has no weights they are those of the samples.

    The choice is a pure function of (seed, epoch, id, which showing). A batch is "latent" float32 [B, C, H, W], "text"
    float32 [B, T, D], and int64 [B] "id", "showing", "view" and "caption". The showing is what random numbers are keyed
    by: the sample's id the first time, another number each further time.

    Attributes:
        samples: Position in the store of each showing's sample.
        ids: What each showing's random numbers are keyed by.
    """

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.seed = seed
        _check_fields(store)
        weights = store.weights
        self.samples: Ints = np.repeat(np.arange(len(store)), weights)
        nth = np.arange(len(self.samples)) - np.repeat(np.cumsum(weights) - weights, weights)
        self.ids = showing_ids(store.ids[self.samples], nth)

    def showings(self, positions: Ints) -> Ints:
        """Return the positions of all showings of samples, which are given by ascending positions in the store."""
        return np.flatnonzero(np.isin(self.samples, positions))

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of a key."""
        epoch, showings = key
        store, positions, ids = self.store, self.samples[showings], self.ids[showings]
        fields = store.schema.fields
        view = choices(ids, fields["latent"].shape[0], "view", self.seed, epoch)
        caption = choices(ids, store.caption_counts[positions].astype(np.int64), "caption", self.seed, epoch)
        rows = {name: np.minimum(caption, fields[name].shape[0] - 1) for name in store.schema.conditions}
        return {
            **{name: _single(store.read(name, positions, rows.get(name, view))) for name in store.schema.inputs},
            "id": torch.from_numpy(store.ids[positions]),
            "showing": torch.from_numpy(ids),
            "view": torch.from_numpy(view),
            "caption": torch.from_numpy(caption),
        }


class PredictBatches(Dataset[Batch]):
    """Batches with all that is stored of each sample.

    A batch is "latent" [B, V, C, H, W] and "text" [B, K, T, D] as stored, of which the first "captions" int64 [B]
    are captions and the rest zero, and "id" int64 [B]. Whoever uses a part of it converts that part.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ids = store.ids
        _check_fields(store)

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of a key."""
        _, positions = key
        return whole_samples(self.store, positions)


def whole_samples(store: Store, positions: Ints) -> Batch:
    """Return all that is stored of samples, see :class:`PredictBatches`."""
    return {
        **{name: torch.from_numpy(store.read(name, positions)) for name in store.schema.inputs},
        "captions": torch.from_numpy(store.caption_counts[positions].astype(np.int64)),
        "id": torch.from_numpy(store.ids[positions]),
    }


@dataclass(frozen=True)
class Share:
    """One rank's part of the samples."""

    rank: int = 0
    world_size: int = 1

    def of(self, positions: Ints, *, strided: bool) -> Ints:
        """Return the positions of this rank: every world_size-th, or a contiguous part. Sizes differ by at most one."""
        if strided:
            return positions[self.rank :: self.world_size]
        return np.array_split(positions, self.world_size)[self.rank]

    def batches(self, total: int, batch_size: int) -> int:
        """Return the number of batches of this rank: the same on each, if there are as many samples as ranks."""
        least, more = divmod(total, self.world_size)
        return -(-max(least, int(self.rank < more)) // batch_size) if least == 0 else -(-least // batch_size)

    def cut(self, positions: Ints, batch_size: int, *, strided: bool) -> list[Ints]:
        """Cut this rank's part into batches. The last one of some ranks is one larger than that of others."""
        count = self.batches(len(positions), batch_size)
        ends = [batch_size * batch for batch in range(1, count)]
        return np.split(self.of(positions, strided=strided), ends) if count else []


class Keys(Sampler[Key]):
    """Keys of one rank's batches of an epoch, from a given batch on.

    Every position comes exactly once per epoch over all ranks, and every rank has the same number of batches, so that
    none waits for another for ever. Where the samples do not divide evenly, the last batch of some ranks is therefore
    one sample larger than that of others, which can be one more than ``batch_size``.

    Args:
        ids: Ids of the samples or showings [N], which their order depends on.
        positions: Their positions [N].
        order: "shuffled", anew each epoch by (seed, epoch, id), or "stored".
    """

    def __init__(
        self,
        ids: Ints,
        positions: Ints,
        batch_size: int,
        order: Literal["shuffled", "stored"],
        seed: int = 0,
        share: Share | None = None,
    ) -> None:
        self.ids = ids
        self.positions = positions
        self.batch_size = batch_size
        self.order = order
        self.seed = seed
        self.share = share or Share()
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each."""
        self.epoch = epoch

    def settings(self) -> dict[str, int | str]:
        """Return what the batches of an epoch depend on, besides its number."""
        return {
            "order": self.order,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": self.share.world_size,
            "batches": len(self),
            "samples": xxh3_64_hexdigest(self.ids.astype("<i8").tobytes()),
        }

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.share.batches(len(self.positions), self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys of the epoch from batch ``start`` on."""
        epoch = self.epoch
        for positions in self._epoch_batches(epoch)[self.start :]:
            yield epoch, positions

    def _epoch_batches(self, epoch: int) -> list[Ints]:
        """Return this rank's batches. Shuffled, those of all ranks together make the batch that one rank would have."""
        if self.order == "stored":
            return self.share.cut(self.positions, self.batch_size, strided=False)
        shuffle = shuffled(self.ids, "order", self.seed, epoch)
        return self.share.cut(self.positions[shuffle], self.batch_size, strided=True)


class GivenKeys(Keys):
    """Keys of batches that are given, the same in every epoch.

    Args:
        ids: Ids of all samples of the store.
        batches: Positions of each batch; there must be at least one, which may be empty.
    """

    def __init__(self, ids: Ints, batches: Sequence[Ints]) -> None:
        positions = np.concatenate(batches)
        super().__init__(ids[positions], positions, max(len(batch) for batch in batches), "stored")
        self.batches = list(batches)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def _epoch_batches(self, epoch: int) -> list[Ints]:
        return self.batches


def _single(array: NDArray[Any]) -> Tensor:
    """Return numbers with a fraction as float32. NumPy converts: torch's threads wait for each other on busy cores."""
    if array.dtype.kind != "f":
        return torch.from_numpy(array)
    return torch.from_numpy(array.astype(np.float32, copy=False))


class LatentLoader:
    """An iterable of batches that resumes in the middle of an epoch.

    It is no ``DataLoader`` but has one: Lightning takes DataLoaders apart to put its own samplers in. Its state counts
    the batches handed out, not those that workers have read ahead, so that a resumed run goes on with the next one.

    Args:
        dataset: Makes a batch of a key.
        sampler: Keys of each epoch. Lightning calls its ``set_epoch``.
        num_workers: Processes that read ahead; 0 reads in this one.
        pin_memory: Whether batches lie in page-locked memory, which speeds up copies to a CUDA device.
    """

    def __init__(self, dataset: Dataset[Batch], sampler: Keys, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.batch_sampler = None  # Lightning asks for it where there is a sampler
        self._loader: DataLoader[Batch] = DataLoader(
            dataset, batch_size=None, sampler=sampler, num_workers=num_workers, pin_memory=pin_memory
        )
        self._epoch = 0
        self._handed_out = 0
        self._resumed: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the sampler's epoch; the first time after a state was taken up, those that it lacks."""
        # Nothing here runs before the first batch is asked for: Lightning makes iterators before it sets the epoch.
        epoch, handed_out = self._resumed or (0, 0)
        self._resumed = None
        self._epoch, self._handed_out = self.sampler.epoch, 0
        if epoch == self._epoch:
            self._handed_out = handed_out
        self.sampler.start = self._handed_out
        batches = iter(self._loader)
        try:
            while (batch := self._next(batches)) is not None:
                self._handed_out += 1
                yield batch
        finally:
            # The traceback of an error keeps the workers alive, and the garbage collector waits 5 s for each.
            if self._loader.num_workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """Return the next batch, None after the last. A worker's error is unwrapped from torch's traceback."""
        try:
            return next(batches, None)
        except UserError as error:
            kind = type(error)
            raise kind(str(error).rstrip().rsplit(f"{kind.__name__}: ", 1)[-1]) from error

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, and what the order of its batches depends on."""
        epoch, handed_out = self._resumed or (self._epoch, self._handed_out)
        return {"epoch": epoch, "batches": handed_out, "order": self.sampler.settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state.

        Raises:
            UserError: It is of the middle of an epoch that came in another order.
        """
        found, expected = self.sampler.settings(), state["order"]
        middle = 0 < state["batches"] < expected["batches"]
        if middle and (other := [name for name in expected if found[name] != expected[name]]):
            raise UserError(
                f"data: found {', '.join(f'{name} {found[name]}' for name in other)}, expected "
                f"{', '.join(f'{name} {expected[name]}' for name in other)} as in the checkpoint, which was taken in "
                "the middle of an epoch"
            )
        self._resumed = (state["epoch"], state["batches"])


def _check_fields(store: Store) -> None:
    if "latent" not in store.schema.inputs or not store.schema.conditions:
        raise StoreError(f"{store.path}: found fields {sorted(store.schema.fields)}, expected a latent and conditions")
