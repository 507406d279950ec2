"""Reading images of every kind of source with two processes, against a bare loop of Pillow in two processes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lightning_attr.commands.prepare.decoder import Decoder
from lightning_attr.commands.prepare.images import Decoded, Reading
from lightning_attr.errors import UserError
from lightning_attr.sources.auto import open_source
from lightning_attr.sources.base import Faults
from lightning_attr.sources.table import Columns
from tools.benchmark.bare import SIZE, bare
from tools.benchmark.timing import Figure, Sizes, ratio, seconds

WORKERS = 2
BATCH = 64
AIM = 0.9


def measure(folder: Path, images: Sequence[Path], sizes: Sizes) -> Iterator[Figure]:
    """Measure what comes before encoding: listing the source, reading, decoding, cropping, thumbnails.

    Args:
        folder: Where the sources are written.
        images: JPEGs.
        sizes: How often it is repeated.
    """
    with (
        ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool,
        Decoder(SIZE, Reading(turned=True, quick=True), WORKERS) as decoder,
    ):
        for kind, write in LAYOUTS.items():
            source = folder / kind
            source.mkdir()
            try:
                write(source, images)
            except ImportError as error:
                yield Figure(f"ingest_{kind}_vs_bare", None, f"needs {error.name}", AIM)
                continue
            ours, bare = partial(_read, decoder, source, len(images)), partial(_loop, pool, images)
            yield Figure(f"ingest_{kind}_vs_bare", ratio(seconds(ours), seconds(bare), sizes.repeats), "decoding", AIM)


def _read(decoder: Decoder, source: Path, count: int) -> None:
    faults = Faults(skip=False)
    places = (record.place for record in open_source(str(source), None, None, Columns(), faults).records(faults))
    items = [item for batch in decoder.batches(iter(lambda: list(islice(places, BATCH)), [])) for item in batch]
    if not all(isinstance(item, Decoded) for item in items) or len(items) != count:
        raise UserError(f"{source}: found an image that cannot be read")


def _loop(pool: ProcessPoolExecutor, images: Sequence[Path]) -> None:
    for _ in pool.map(bare, images):
        pass


def _folder(folder: Path, images: Sequence[Path]) -> None:
    for place, image in enumerate(images):
        (folder / image.name).symlink_to(image.absolute())
        (folder / image.name).with_suffix(".txt").write_text(_caption(place))


def _metadata(folder: Path, images: Sequence[Path]) -> None:
    rows = []
    for place, image in enumerate(images):
        (folder / image.name).symlink_to(image.absolute())
        rows.append(json.dumps({"file_name": image.name, "text": _caption(place)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def _parquet(folder: Path, images: Sequence[Path]) -> None:
    arrow: Any = import_module("pyarrow")
    rows = [
        {"image": {"bytes": image.read_bytes(), "path": image.name}, "text": _caption(place)}
        for place, image in enumerate(images)
    ]
    table = arrow.Table.from_pylist(rows)
    import_module("pyarrow.parquet").write_table(table, folder / "train.parquet", row_group_size=100)


def _webdataset(folder: Path, images: Sequence[Path]) -> None:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for place, image in enumerate(images):
            tar.add(image.resolve(), f"{place:09}.jpg")
            text = folder / "caption.txt"
            text.write_text(_caption(place))
            tar.add(text, f"{place:09}.txt")
    text.unlink()


def _caption(place: int) -> str:
    return f"generated image {place}"


LAYOUTS: Mapping[str, Callable[[Path, Sequence[Path]], None]] = {
    "folder": _folder,
    "metadata": _metadata,
    "parquet": _parquet,
    "webdataset": _webdataset,
}
"""Writes images as each kind of source has them."""
