"""Stores with right checksums and wrong content: each gives one message that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import COUNT, IDS, STATE, Values, hand_made, meta, schema, state
from safetensors.torch import load, save

from datamodules.store import Store
from datamodules.store.layout import HEAD, MADE_FROM, META, THUMB, encode_index, key_of
from lightning_attr.commands.inspect import main as inspect
from lightning_attr.encoders import PatchPCA, store_image_encoder, store_text_encoder, thumb_images
from lightning_attr.errors import UserError

SCHEMA, COMPLETE, INDEX = (HEAD, b"schema"), (HEAD, b"complete"), (HEAD, b"index")
FIRST = (META, key_of(0))
DEEP = b"[" * 100_000


def changed(record: dict[str, Any], *place: str, to: Any) -> dict[str, Any]:
    """A record with one value replaced or added."""
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = to
    return record


def index(ids: Any = IDS, counts: Any = (1, 1, 1)) -> bytes:
    return encode_index(np.asarray(ids, np.int64), np.asarray(counts, np.int32))


def said(*place: str, to: Any) -> Values:
    return {SCHEMA: changed(schema(), *place, to=to)}


def raw(record: Any) -> bytes:
    """JSON that our writer refuses: NaN, and halves of characters."""
    return json.dumps(record).encode()


def of_first(*place: str, to: Any) -> Values:
    return {FIRST: changed(meta(0), *place, to=to)}


CASES: dict[str, Values] = {
    # The schema.
    "no schema": {SCHEMA: None},
    "an empty schema": {SCHEMA: b""},
    "a schema that is no JSON": {SCHEMA: b"{"},
    "a schema that is no text": {SCHEMA: b"\xff\xfe"},
    "a schema that is nested too deep": {SCHEMA: DEEP},
    "a schema that is a list": {SCHEMA: []},
    "a schema that is a number": {SCHEMA: 3},
    "a schema of another format": said("format", to="zarr"),
    "a schema of version true": said("version", to=True),
    "a schema of version 3": said("version", to=3),
    "a version that is a list": said("version", to=[1]),
    "unknown keys": said("compression", to="zstd"),
    "no fields": said("fields", to={}),
    "fields in a list": said("fields", to=["latent"]),
    "a field that is a text": said("fields", "latent", to="float16"),
    "a field with unknown keys": said("fields", "latent", "codec", to="raw"),
    "a field without a type": said("fields", "latent", to={"shape": [1]}),
    "a field named as a database": said("fields", "meta", to=schema()["fields"]["text"]),
    "a field whose name is too long": said("fields", "x" * 600, to=schema()["fields"]["text"]),
    "a field without a name": said("fields", "", to=schema()["fields"]["text"]),
    "a field named by half a character": {
        SCHEMA: raw(changed(schema(), "fields", "\ud800", to=schema()["fields"]["text"]))
    },
    "too many fields": said("fields", to={f"f{i}": {"shape": [1], "dtype": "bool", "role": None} for i in range(200)}),
    "a field that is not there": said("fields", "more", to={"shape": [1], "dtype": "bool", "role": None}),
    "no shape": said("fields", "latent", "shape", to=[]),
    "a shape that is a number": said("fields", "latent", "shape", to=4),
    "a shape that is a text": said("fields", "latent", "shape", to="2344"),
    "a negative shape": said("fields", "latent", "shape", to=[2, 3, -4, 4]),
    "a shape of fractions": said("fields", "latent", "shape", to=[2, 3, 4.5, 4]),
    "a shape of booleans": said("fields", "latent", "shape", to=[True, 3, 4, 4]),
    "a shape of texts": said("fields", "latent", "shape", to=["2", "3"]),
    "a shape of not a number": {SCHEMA: raw(changed(schema(), "fields", "latent", "shape", to=[float("nan")]))},
    "a huge shape": said("fields", "latent", "shape", to=[2, 3, 1 << 40, 4]),
    "a shape beyond all integers": said("fields", "latent", "shape", to=[10**30]),
    "a shape of more bytes than the file": said("fields", "latent", "shape", to=[2, 3, 1 << 10, 4]),
    "a shape of too many axes": said("fields", "latent", "shape", to=[1] * 100),
    "another shape of as many bytes": said("fields", "latent", "shape", to=[3, 2, 4, 4]),
    "an unknown type": said("fields", "latent", "dtype", to="float17"),
    "a type that is null": said("fields", "latent", "dtype", to=None),
    "a type that is a list": said("fields", "latent", "dtype", to=[["a", "float16"]]),
    "a type of objects": said("fields", "latent", "dtype", to="object"),
    "a type of records": said("fields", "latent", "dtype", to="f2,f2"),
    "another type": said("fields", "latent", "dtype", to="float64"),
    "a role that is a list": said("fields", "latent", "role", to=["latent"]),
    "an unknown role": said("fields", "latent", "role", to="picture"),
    "encoders in a list": said("encoders", to=[]),
    "encoders with not a number": {SCHEMA: raw(changed(schema(), "encoders", "image", to=float("nan")))},
    # What encoders are built of.
    "no image encoder": said("encoders", to={"text": schema()["encoders"]["text"]}),
    "an encoder that is a text": said("encoders", "text", to="HashedWords"),
    "an encoder without a class": said("encoders", "text", to={}),
    "an encoder of a list of classes": said("encoders", "text", "class", to=["HashedWords"]),
    "an unknown encoder": said("encoders", "text", "class", to="os.system"),
    "an encoder with a text as number": said("encoders", "text", "tokens", to="5"),
    "an encoder with a fraction as number": said("encoders", "text", "tokens", to=5.5),
    "an encoder with null as number": said("encoders", "text", "dim", to=None),
    "an encoder with another argument": said("encoders", "text", "words", to=3),
    "an encoder of too many numbers": said("encoders", "text", "tokens", to=10**12),
    "an encoder of other sizes": said("encoders", "text", "dim", to=10),
    "an image encoder of other sizes": {
        **said("encoders", "image", "channels", to=4),
        state("image"): PatchPCA(4, 4).state(),
    },
    "an image encoder of too many numbers": said("encoders", "image", "patch", to=10**9),
    "a pretrained encoder without a source": said("encoders", "image", to={"class": "AutoencoderKLEncoder"}),
    "a pretrained encoder of a number": said("encoders", "image", to={"class": "AutoencoderKLEncoder", "source": 3}),
    "a state that is no safetensors": {state("image"): b"numbers"},
    "a state of not a number": {state("image"): save({name: tensor / 0 for name, tensor in load(STATE).items()})},
    "a state of another encoder": {state("image"): PatchPCA(2, 3).state()},
    "a state of the text encoder": {state("text"): b"numbers"},
    # What is complete.
    "nothing complete": {COMPLETE: None},
    "a complete list": {COMPLETE: [3]},
    "no count": {COMPLETE: {"digest": "x"}},
    "no digest": {COMPLETE: {"count": COUNT}},
    "a digest that is a number": {COMPLETE: {"count": COUNT, "digest": 3}},
    "a negative count": {COMPLETE: {"count": -1, "digest": "x"}},
    "a count in words": {COMPLETE: {"count": "3", "digest": "x"}},
    "a count that is infinite": {COMPLETE: b'{"count": Infinity, "digest": "x"}'},
    "a huge count": {COMPLETE: {"count": 1 << 70, "digest": "x"}},
    "another count": {COMPLETE: {"count": COUNT + 1, "digest": "x"}},
    "notes in a list": {COMPLETE: {"count": COUNT, "digest": "x", "notes": ["cut"]}},
    "notes in words": {COMPLETE: {"count": COUNT, "digest": "x", "notes": {"cut": "many"}}},
    "what it was made from in a list": {(HEAD, MADE_FROM.encode()): ["images"]},
    # The index.
    "no index": {INDEX: None},
    "a short index": {INDEX: index()[:-1]},
    "ids that descend": {INDEX: index(IDS[::-1])},
    "ids that repeat": {INDEX: index([0, 3, 3])},
    "negative ids": {INDEX: index([-3, 0, 3])},
    "other ids": {INDEX: index([0, 3, 7])},
    "negative numbers of captions": {INDEX: index(counts=[1, -1, 1])},
    "more captions than rows": {INDEX: index(counts=[1, 4, 1])},
    "other numbers of captions": {INDEX: index(counts=[1, 2, 1])},
    # Samples.
    "no meta": {FIRST: None},
    "a meta that is no JSON": {FIRST: b"}"},
    "a meta that is no text": {FIRST: b'{"id": "\xff"}'},
    "a meta that is nested too deep": {FIRST: DEEP},
    "a meta that is null": {FIRST: b"null"},
    "a meta without captions": {FIRST: {"id": 0}},
    "a meta with more": of_first("views", to=2),
    "an id in words": of_first("id", to="0"),
    "an id that is true": of_first("id", to=False),
    "a huge id": of_first("id", to=1 << 64),
    "captions in one text": of_first("captions", to="c"),
    "captions that are null": of_first("captions", to=None),
    "captions that are numbers": of_first("captions", to=[3]),
    "captions in lists": of_first("captions", to=[["a"]]),
    "half a character": {FIRST: raw(changed(meta(0), "captions", to=["a \ud800"]))},
    "half a character in attributes": {FIRST: raw(changed(meta(0), "attributes", to={"a": "\udfff"}))},
    "a licence that is a list": of_first("licence", to=["CC0"]),
    "a source that is a number": of_first("source", to=3),
    "attributes in a list": of_first("attributes", to=[1]),
    "attributes that are not a number": {FIRST: raw(changed(meta(0), "attributes", "seed", to=float("nan")))},
    "no thumb": {(THUMB, key_of(1)): None},
    "no block": {("latent", key_of(0)): None},
    "a short block": {("latent", key_of(0)): b"\0" * 20},
}  # fmt: skip


def uses(path: Path) -> list[Callable[[], object]]:
    """All that anybody does with a store."""
    store = Store(path)
    places = range(len(store))
    return [
        lambda: (store.ids, store.caption_counts, store.notes, store.made_from),
        lambda: store.positions(store.ids),
        lambda: [store.meta(place) for place in places],
        lambda: [store.thumb(place) for place in places],
        lambda: [store.file_digest(place) for place in places],
        *(lambda name=name: store.read(name, places) for name in store.schema.fields),
        *(lambda name=name: store.read(name, places, [0] * len(store)) for name in store.schema.fields),
        lambda: store_image_encoder(store),
        lambda: store_text_encoder(store),
        lambda: thumb_images(store, store.ids),
        lambda: inspect([str(path), "--verify"]),
    ]


def complaints(path: Path) -> list[str]:
    """What is said about a store; anything but a ``UserError`` is raised."""
    try:
        attempts = uses(path)
    except UserError as error:
        return [str(error)]
    found = []
    for attempt in attempts:
        try:
            attempt()
        except UserError as error:
            found.append(str(error))
    return found


#: What is wrong in any case: thumbnails are no pictures, and the digest is none.
USUAL = ("no picture in the thumb", "found digest")


@pytest.mark.parametrize("case", CASES)
def test_wrong_content_is_one_message(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = hand_made(tmp_path / "a.lmdb", CASES[case])
    found = [message for message in complaints(path) if not any(words in message for words in USUAL)]
    assert found
    for message in found:
        assert str(path) in message
        assert "\n" not in message
        assert len(message) - message.count(str(path)) * len(str(path)) < 500


def test_the_rest_is_right(tmp_path: Path) -> None:
    """Without a change there is no complaint but the usual ones."""
    path = hand_made(tmp_path / "a.lmdb", {})
    assert all(any(words in message for words in USUAL) for message in complaints(path))
