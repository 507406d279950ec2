"""The Lightning data module of latents and text states."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from numpy.typing import NDArray

from datamodules.loading import GivenKeys, Keys, LatentLoader, PredictBatches, Share, TrainBatches
from datamodules.selection import Exclude, Subset, kept_positions
from datamodules.store import Store
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.errors import UserError, expect_within


class LatentDataModule(LightningDataModule):
    """Samples of a store, for training (fit), validation and prediction.

    Batches for training are those of :class:`~datamodules.loading.TrainBatches`, for validation and prediction those
    of :class:`~datamodules.loading.PredictBatches`. Several ranks share the samples with none repeated and none
    missing, whatever their number.

    Args:
        store: The store.
        batch_size: Samples per batch and rank.
        seed: Of the order and of the choice of views and captions.
        num_workers: Processes that read ahead; 0 reads in the training process.
        val_store: A store of other samples to validate on.
        exclude: Samples of ``store`` to leave out.
        subset: Samples of ``store`` to use.
        order: "shuffled" anew each epoch, or "stored" for sums over the store such as the curvature's.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self,
        store: InputPath,
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
        val_store: InputPath | None = None,
        exclude: Exclude | None = None,
        subset: Subset | None = None,
        order: Literal["shuffled", "stored"] = "shuffled",
    ) -> None:
        super().__init__()
        expect_within("data.batch_size", batch_size, 1)
        expect_within("data.num_workers", num_workers, 0, 1024)  # each is a process
        self.store = store
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.val_store = val_store
        self.exclude = exclude
        self.subset = subset
        self.order = order
        #: Positions of the batches of this rank's prediction where a task chooses them, such as those still to be done.
        self.predict_batches: Sequence[NDArray[np.int64]] | None = None
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Return the positions of the samples that are used, ascending."""
        return kept_positions(self._opened, self.exclude, self.subset)

    @cached_property
    def left_out_ids(self) -> list[int]:
        """Return the ids of the store's samples that are not used, ascending."""
        return [int(sample) for sample in np.delete(self._opened.ids, self.positions)]

    @property
    def store_digest(self) -> str:
        """Return the digest of the store."""
        return self._opened.digest

    def setup(self, stage: str) -> None:
        """Open the store and choose the samples, so that mistakes show before anything starts."""
        counts = {"data": len(self.positions)}
        if self.val_store is not None and stage != "predict":
            counts[f"data.val_store {self.val_store}"] = len(Store(self.val_store))
        ranks = self._share.world_size
        for what, count in counts.items():
            if count < ranks:
                raise UserError(f"{what}: found {count} samples, expected at least one for each of the ranks ({ranks})")

    def train_dataloader(self) -> LatentLoader:
        """Return every sample once per epoch, or as often as its weight says; the last batch may be short."""
        dataset = TrainBatches(self._opened, self.seed)
        return self._loader(dataset, dataset.showings(self.positions), self.order)

    def val_dataloader(self) -> LatentLoader | list[LatentLoader]:
        """Return all samples of ``val_store``, in the order of their ids; nothing if there is none."""
        if self.val_store is None:
            return []
        store = Store(self.val_store)
        return self._loader(PredictBatches(store), np.arange(len(store)), "stored")

    def predict_dataloader(self) -> LatentLoader:
        """Return all samples once, in the order of their ids, or the batches that a task has chosen."""
        dataset = PredictBatches(self._opened)
        if self.predict_batches is None:
            return self._loader(dataset, self.positions, "stored")
        return self._load(dataset, GivenKeys(self._opened.ids, self.predict_batches))

    @cached_property
    def _opened(self) -> Store:
        return Store(self.store)

    @property
    def _share(self) -> Share:
        return Share(self.trainer.global_rank, self.trainer.world_size) if self.trainer else Share()

    def _loader(
        self, dataset: TrainBatches | PredictBatches, positions: NDArray[np.int64], order: Literal["shuffled", "stored"]
    ) -> LatentLoader:
        keys = Keys(dataset.ids[positions], positions, self.batch_size, order, self.seed, self._share)
        return self._load(dataset, keys)

    def _load(self, dataset: TrainBatches | PredictBatches, keys: Keys) -> LatentLoader:
        on_cuda = self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)
        return LatentLoader(dataset, keys, self.num_workers, pin_memory=on_cuda)
