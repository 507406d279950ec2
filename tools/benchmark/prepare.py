"""Preparing a store from photographs: decode, crop, encode, write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_attr.commands.prepare.coco import main as prepare_coco
from tools.benchmark import ingest
from tools.benchmark.timing import Figure, Sizes, Spread, seconds

WORKERS = 2
REPEATS = 3


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure images per second of the whole command, from the captions file to the finished store."""
    images = folder / "images"
    captions = _write_images(images, sizes.images)

    def prepare(store: Path) -> None:
        prepare_coco(
            ["--images", str(images), "--captions", str(captions), "--out", str(store), "--workers", str(WORKERS)]
        )

    stores = [folder / f"prepared-{i}.lmdb" for i in range(min(REPEATS, sizes.repeats))]
    rates = [sizes.images / seconds(partial(prepare, store))() for store in stores]
    yield Figure("prepare_images_per_s", Spread.of(rates), "decoding JPEGs, in the worker processes")
    yield from ingest.measure(folder, sorted(images.glob("*.jpg")), sizes)


def _write_images(folder: Path, count: int) -> Path:
    """Write JPEGs of COCO's usual size, and their captions; about as many bytes as photographs have."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for id in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{id:06d}.jpg", quality=95)
    path = folder / "captions.json"
    listed = [{"id": id, "file_name": f"{id:06d}.jpg"} for id in range(count)]
    annotations = [
        {"id": 5 * id + place, "image_id": id, "caption": f"generated image {id}, caption {place}"}
        for id in range(count)
        for place in range(5)
    ]
    path.write_text(json.dumps({"images": listed, "annotations": annotations}))
    return path
