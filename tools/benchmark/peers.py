"""Reading a store in batches, against the same records in the formats of other projects through their own loaders.

All read in stored order and in this process. Ours checks every byte and gives float32; the others do neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.loading import Keys, LatentLoader, PredictBatches
from tools.benchmark.records import LATENT, SHORT_TEXT, Records, write_records
from tools.benchmark.timing import Figure, Sizes, ratio, seconds

BATCH = 128
AIM = 3.0
LIMIT = "ours: checksums and one copy; theirs: Python for every record"
RECORDS_PER_SHARD = 1024


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure records of id, latents and short text states: 14 kB."""
    records = write_records(folder / "peers", {"latent": LATENT, "text": SHORT_TEXT}, sizes.records)
    keys = Keys(records.store.ids, np.arange(len(records)), BATCH, "stored")
    ours = LatentLoader(PredictBatches(records.store), keys)
    peers: dict[str, Callable[[Path, Records], Iterable[Any]]] = {"litdata": _litdata, "webdataset": _webdataset}
    for name, write in peers.items():
        key = f"read_vs_{name}"
        if find_spec(name) is None:
            yield Figure(key, None, f"{name} is not installed (extra: peers)", AIM)
            continue
        theirs = write(folder / name, records)
        a, b = (seconds(partial(_read_all, batches, len(records))) for batches in (ours, theirs))
        yield Figure(key, ratio(a, b, sizes.repeats), LIMIT, AIM)
        with _one_thread():
            value = ratio(a, b, sizes.repeats)
        yield Figure(f"{key}_one_thread", value, "the same with one torch thread, as in a loader's worker", kept=False)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: on a busy machine, small operations wait long for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _read_all(batches: Iterable[Any], count: int) -> None:
    read = sum(len(batch["id"]) for batch in batches)
    assert read == count, f"read {read} records of {count}"


def _items(records: Records) -> Iterator[dict[str, Any]]:
    for id in range(len(records)):
        yield {"id": id, **{name: array[id] for name, array in records.arrays.items()}}


def _litdata(folder: Path, records: Records) -> Iterable[Any]:
    """Write chunks of 64 MB, as in its documentation, and return its own loader of them."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes="64MB")
    for index, item in enumerate(_items(records)):
        cache[index] = item
    cache.done()
    cache.merge()
    loader: Iterable[Any] = StreamingDataLoader(StreamingDataset(str(folder)), batch_size=BATCH, num_workers=0)
    return loader


def _webdataset(folder: Path, records: Records) -> Iterable[Any]:
    """Write tar shards with a .npy member per array, and return its own loader of them."""
    import webdataset

    folder.mkdir()
    pattern = str(folder / "shard-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=RECORDS_PER_SHARD, verbose=0) as writer:
        for item in _items(records):
            arrays = {f"{name}.npy": item[name] for name in records.arrays}
            writer.write({"__key__": f"{item['id']:09d}", "id.cls": item["id"], **arrays})
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    members = {"id": "id.cls", **{name: f"{name}.npy" for name in records.arrays}}
    dataset = webdataset.WebDataset(shards, shardshuffle=False).decode().rename(**members)
    batched = dataset.to_tuple(*members).batched(BATCH).map(partial(_named, tuple(members)))
    loader: Iterable[Any] = webdataset.WebLoader(batched, batch_size=None, num_workers=0)
    return loader


def _named(names: tuple[str, ...], values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))
