"""AbC sets whose right answer is known: every model has a code, which its exemplars and its queries share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datamodules import Field, Meta, Sample, Schema, StoreWriter
from lightning_attr.abc.set import GALLERY, QUERIES, AbcSet, CustomModel, write_set

SIGNAL, NUISANCE = 6, 10
SHAPE = (1, SIGNAL + NUISANCE, 1, 1)
SCHEMA = Schema(
    {"latent": Field(SHAPE, "float32", "latent"), "text": Field((1, 1, 2), "float32", "condition")},
    {"image": {"class": "PatchPCA", "patch": 4}, "text": {"class": "HashedWords"}},
)
#: Models of each split.
SPLITS = {"train": 14, "validation": 6, "test": 8}


def make_coded_set(
    folder: Path,
    splits: Mapping[str, int] = SPLITS,
    exemplars: int = 3,
    queries: int = 4,
    distractors: int = 120,
    nuisance: float = 3.0,
    noise: float = 0.3,
    encoder: bytes = b"fitted numbers",
) -> AbcSet:
    """Write a set: of a latent, the first ``SIGNAL`` numbers are a code and noise, the others are nothing but noise.

    The cosine of latents is mostly about the others; a linear map that leaves them out finds the exemplars.
    """
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((sum(splits.values()), SIGNAL))

    def latent(code: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.concatenate([code + noise * rng.standard_normal(SIGNAL), nuisance * rng.standard_normal(NUISANCE)])

    of_exemplars = [latent(code) for code in codes for _ in range(exemplars)]
    of_distractors = [latent(rng.standard_normal(SIGNAL)) for _ in range(distractors)]
    _write(folder / GALLERY, [*of_exemplars, *of_distractors], encoder)
    _write(folder / QUERIES, [latent(code) for code in codes for _ in range(queries)], encoder)
    names = [f"{split}-{index}" for split, count in splits.items() for index in range(count)]
    models = [
        CustomModel(
            name,
            "code",
            name.partition("-")[0],
            tuple(range(place * exemplars, (place + 1) * exemplars)),
            {"thing": tuple(range(place * queries, (place + 1) * queries))},
        )
        for place, name in enumerate(names)
    ]
    return write_set(folder, models)


def _write(path: Path, latents: list[np.ndarray[tuple[int], np.dtype[np.float64]]], encoder: bytes) -> None:
    with StoreWriter(path, SCHEMA) as writer:
        writer.put_encoder_state("image", encoder)
        for number, latent in enumerate(latents):
            arrays = {
                "latent": latent.astype(np.float32).reshape(SHAPE),
                "text": np.zeros((1, 1, 2), np.float32),
            }
            writer.write(Sample(Meta(number, (f"caption {number}",), None, None, {}), arrays, b""))
        writer.finish()
