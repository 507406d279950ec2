"""Stores that are whole but hold the wrong things: changes of one that a project has made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.store import Store
from datamodules.store.records import Field, Sample, Schema
from datamodules.store.writer import StoreWriter

Change = Callable[[Schema, list[Sample]], tuple[Schema, list[Sample]]]


def _field(name: str, change: Callable[[Any], Any], **schema: Any) -> Change:
    """Return a change of one field of all samples, and of its schema."""

    def changed(before: Schema, samples: list[Sample]) -> tuple[Schema, list[Sample]]:
        arrays = [{**sample.arrays, name: change(sample.arrays[name])} for sample in samples]
        field = before.fields[name]
        about = {"shape": arrays[0][name].shape, "dtype": arrays[0][name].dtype.name, "role": field.role, **schema}
        return (
            Schema({**before.fields, name: Field(**about)}, before.encoders),
            [replace(sample, arrays=each) for sample, each in zip(samples, arrays, strict=True)],
        )

    return changed


def _without(name: str) -> Change:
    return lambda schema, samples: (
        Schema({key: field for key, field in schema.fields.items() if key != name}, schema.encoders),
        [replace(s, arrays={key: value for key, value in s.arrays.items() if key != name}) for s in samples],
    )


def _meta(**values: Any) -> Change:
    return lambda schema, samples: (schema, [replace(s, meta=replace(s.meta, **values)) for s in samples])


def _encoders(**values: Any) -> Change:
    return lambda schema, samples: (Schema(schema.fields, {**schema.encoders, **values}), samples)


def _ids(of: Callable[[int], int]) -> Change:
    return lambda schema, samples: (schema, [replace(s, meta=replace(s.meta, id=of(s.meta.id))) for s in samples])


#: Stores that are made by hand, as changes of one that the project has made.
STORES: Mapping[str, Change] = {
    "no samples": lambda schema, samples: (schema, []),
    "one sample": lambda schema, samples: (schema, samples[:1]),
    "no latent": _without("latent"),
    "no text": _without("text"),
    "latents of NaN": _field("latent", lambda array: np.full_like(array, math.nan)),
    "latents of inf": _field("latent", lambda array: np.full_like(array, math.inf)),
    "latents of zero": _field("latent", np.zeros_like),
    "latents of another size": _field("latent", lambda array: array[..., :4, :4]),
    "latents that are no squares": _field("latent", lambda array: array[..., :4]),
    "latents of other channels": _field("latent", lambda array: array[:, :3]),
    "latents without views": _field("latent", lambda array: array[0]),
    "latents of a number": _field("latent", lambda array: array.reshape(-1)[:1]),
    "latents of uint8": _field("latent", lambda array: array.astype(np.uint8)),
    "latents of bool": _field("latent", lambda array: array.astype(bool)),
    "latents of float64": _field("latent", lambda array: array.astype(np.float64)),
    "latents of no role": _field("latent", lambda array: array, role=None),
    "text of another width": _field("text", lambda array: array[..., :8]),
    "text of one token": _field("text", lambda array: array[:, :1]),
    "text of a vector": _field("text", lambda array: array[:, 0]),
    "text of one number": _field("text", lambda array: array.reshape(-1)[:1]),
    "text of integers": _field("text", lambda array: array.astype(np.int64)),
    "text of NaN": _field("text", lambda array: np.full_like(array, math.nan)),
    "text of no role": _field("text", lambda array: array, role=None),
    "one caption of three": _field("text", lambda array: array[:1]),
    "no captions": _meta(captions=()),
    "other captions": _meta(captions=("",)),
    "long captions": _meta(captions=("x" * 100_000,) * 3),
    "escapes in captions": _meta(captions=("\x1b[31mred\x1b[0m\n\r\0",) * 3),
    "markup in captions": _meta(captions=("[/s] [bold]",) * 3),
    "attributes of another type": _meta(attributes={"planted": "yes"}),
    "no attributes": _meta(attributes={}),
    "large ids": _ids(lambda id: id + (1 << 62)),
    "ids with gaps": _ids(lambda id: id * id),
    "no encoders": lambda schema, samples: (Schema(schema.fields, {}), samples),
    "unknown encoder": _encoders(image={"class": "Banana"}),
    "encoder of nothing": _encoders(image=None),
    "encoder of a list": _encoders(image=[]),
    "encoder without settings": _encoders(image={"class": "PatchPCA"}),
    "encoder of the hub": _encoders(text={"class": "CLIPText", "name": "openai/nowhere"}),
    "encoder of wrong settings": _encoders(text={"class": "HashedWords", "tokens": -1, "dim": "x"}),
    "encoder of code": _encoders(image={"class": "os.system", "command": "id"}),
    "thumbnails of nothing": lambda schema, samples: (schema, [replace(s, thumb=b"") for s in samples]),
    "thumbnails of text": lambda schema, samples: (schema, [replace(s, thumb=b"no image") for s in samples]),
}


def remake(change: Change) -> None:
    """Make the project's store anew, with a change."""
    path = Path("runs/train.lmdb")
    with Store(path) as store:
        arrays = {name: store.read(name, range(len(store))) for name in store.schema.fields}
        samples = [
            Sample(store.meta(i), {name: values[i] for name, values in arrays.items()}, store.thumb(i))
            for i in range(len(store))
        ]
        schema, states = store.schema, {name: store.encoder_state(name) for name in store.schema.encoders}
    path.unlink()
    schema, samples = change(schema, samples)
    with StoreWriter(path, schema) as writer:
        for name, state in states.items():
            if state is not None and name in schema.encoders:
                writer.put_encoder_state(name, state)
        for sample in samples:
            writer.write(sample)
        writer.finish()
