"""Small stores with known contents."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from datamodules import Field, Meta, Sample, Schema, StoreWriter

FIELDS = {"latent": Field((2, 3, 4, 4), "float16"), "text": Field((3, 5, 8), "float16")}
SCHEMA = Schema(FIELDS, {"image": {"class": "PatchPCA", "patch": 4}, "text": {"class": "HashedWords"}})


def sample(id: int) -> Sample:
    """Everything in it follows from the id."""
    rng = np.random.default_rng(id)
    captions = tuple(f"caption {place} of {id}" for place in range(1 + id % 3))
    arrays = {name: rng.standard_normal(field.shape).astype(field.dtype) for name, field in FIELDS.items()}
    arrays["text"][len(captions) :] = 0
    return Sample(Meta(id, captions, "CC0-1.0", None, {"seed": id}), arrays, rng.bytes(100 + id % 50))


def samples(count: int) -> Iterator[Sample]:
    """Ids 0, 3, 6, ..."""
    return map(sample, range(0, 3 * count, 3))


def write_store(path: Path, count: int) -> Path:
    with StoreWriter(path, SCHEMA) as writer:
        writer.put_encoder_state("image", b"fitted numbers")
        for item in samples(count):
            writer.write(item)
        writer.finish()
    return path


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 150 samples; never to be changed."""
    return write_store(tmp_path_factory.mktemp("store") / "train.lmdb", 150)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[int], Path]:
    return lambda count: write_store(tmp_path / f"{count}.lmdb", count)
