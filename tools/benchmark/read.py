"""Reading a store, against copying the same bytes out of a memory-mapped file, which checks nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.loading import Batch, Key, Keys, LatentLoader, TrainBatches
from datamodules.store import Store
from datamodules.store.reader import Ints
from tools.benchmark.records import LATENT, TEXT, Records, write_records
from tools.benchmark.timing import Figure, Sizes, Spread, Timed, ratio, seconds

LATENT_BATCH = 128
TEXT_BATCH = 64
SHORT = 5
"""Passes over the records take milliseconds: so many times as many repeats as elsewhere."""

LOADER_EPOCHS = 4
"""So many epochs in one, so that starting the workers weighs little."""


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure whole records in stored and in random order; then training batches through loaders with workers."""
    latents = write_records(folder / "latents", {"latent": LATENT}, sizes.latents)
    texts = write_records(folder / "texts", {"latent": LATENT, "text": TEXT}, sizes.texts)
    yield Figure(
        "read_sequential_vs_memmap",
        _sequential(latents, LATENT_BATCH, SHORT * sizes.repeats),
        "one checksum per block of 64 records: the bytes are read twice",
        aim=0.5,
    )
    yield Figure(
        "read_random_vs_memmap",
        _random(latents, LATENT_BATCH, SHORT * sizes.repeats),
        "a B-tree search, a checksum and a copy per record, in a Python loop",
        aim=0.15,
    )
    yield Figure(
        "read_sequential_vs_memmap_text",
        _sequential(texts, TEXT_BATCH, SHORT * sizes.repeats),
        "memory: the store reads for the checksum and to copy, a memory map only to copy",
        aim=0.7,
    )
    yield Figure(
        "read_random_vs_memmap_text",
        _random(texts, TEXT_BATCH, SHORT * sizes.repeats),
        "memory, and page faults of the new arrays, on both sides",
        aim=0.7,
    )
    for workers in (1, 2):
        yield Figure(
            f"loader_{workers}_worker{'s' * (workers > 1)}_vs_memmap",
            _loaders(texts, workers, sizes.repeats),
            "handing batches over from the workers, on both sides",
            kept=False,
        )


def _sequential(records: Records, size: int, repeats: int) -> Spread:
    slices = [slice(start, min(start + size, len(records))) for start in range(0, len(records), size)]

    def from_memmap() -> None:
        for part in slices:
            for array in records.arrays.values():
                array[part].copy()

    batches = [np.arange(part.start, part.stop) for part in slices]
    return ratio(_from_store(records.store, batches), seconds(from_memmap), repeats)


def _random(records: Records, size: int, repeats: int) -> Spread:
    order = np.random.default_rng(0).permutation(len(records))
    batches = [order[start : start + size] for start in range(0, len(records), size)]

    def from_memmap() -> None:
        for positions in batches:
            for array in records.arrays.values():
                array[positions]  # copies

    return ratio(_from_store(records.store, batches), seconds(from_memmap), repeats)


def _from_store(store: Store, batches: Sequence[Ints]) -> Timed:
    """Read all fields of all batches."""

    def read() -> None:
        for positions in batches:
            for field in store.schema.fields:
                store.read(field, positions)

    return seconds(read)


def _loaders(records: Records, workers: int, repeats: int) -> Spread:
    """Compare batches in float32 of one view and one caption a sample, in the same shuffled order on both sides."""
    positions = np.tile(np.arange(len(records)), LOADER_EPOCHS)
    keys = Keys(records.store.ids[positions], positions, TEXT_BATCH, "shuffled")
    ours = LatentLoader(TrainBatches(records.store, seed=0), keys, workers)
    plain = DataLoader(MemmapBatches(records), batch_size=None, sampler=keys, num_workers=workers)
    return ratio(seconds(partial(_drain, ours)), seconds(partial(_drain, plain)), repeats)


def _drain(batches: Iterable[Batch]) -> None:
    for _ in batches:
        pass


class MemmapBatches(Dataset[Batch]):
    """The first view and caption of records out of memory maps; a choice at random would read as many bytes."""

    def __init__(self, records: Records) -> None:
        self.arrays = records.arrays

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of a key."""
        _, positions = key
        return {name: torch.from_numpy(array[positions, 0]).float() for name, array in self.arrays.items()}
