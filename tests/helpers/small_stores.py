"""Small stores with known contents."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodules import Field, Meta, Sample, Schema, StoreWriter

FIELDS = {"latent": Field((2, 3, 4, 4), "float16", "latent"), "text": Field((3, 5, 8), "float16", "condition")}
SCHEMA = Schema(FIELDS, {"image": {"class": "PatchPCA", "patch": 4}, "text": {"class": "HashedWords"}})


def sample(id: int) -> Sample:
    """Everything in it follows from the id."""
    rng = np.random.default_rng(id)
    captions = tuple(f"caption {place} of {id}" for place in range(1 + id % 3))
    arrays = {name: rng.standard_normal(field.shape).astype(field.dtype) for name, field in FIELDS.items()}
    arrays["text"][len(captions) :] = 0
    return Sample(
        Meta(id, captions, "CC0-1.0", None, {"seed": id}), arrays, rng.bytes(5000 if id % 30 == 0 else 100 + id % 50)
    )


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


def damage(path: Path, needle: bytes) -> None:
    """Flip a bit in the middle of these bytes of a file."""
    data = bytearray(path.read_bytes())
    data[bytes(data).index(needle) + len(needle) // 2] ^= 1
    path.write_bytes(data)
