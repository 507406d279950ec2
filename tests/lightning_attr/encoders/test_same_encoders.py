"""Numbers of two stores mean the same where their encoders are the same, wherever the weights of those lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_stores import FIELDS, samples

from datamodules import Schema, Store, StoreWriter
from lightning_attr.encoders import check_encoders, encoders_digest
from lightning_attr.errors import UserError


def store_of(path: Path, state: bytes, **text: object) -> Store:
    """A store whose image encoder was fitted to ``state``."""
    encoders = {"image": {"class": "PatchPCA", "patch": 4}, "text": {"class": "HashedWords", **text}}
    with StoreWriter(path, Schema(FIELDS, encoders)) as writer:
        writer.put_encoder_state("image", state)
        for item in samples(4):
            writer.write(item)
        writer.finish()
    return Store(path)


def test_other_numbers_or_settings_are_other_encoders(tmp_path: Path) -> None:
    digest = encoders_digest(store_of(tmp_path / "a.lmdb", b"one"))
    check_encoders(store_of(tmp_path / "same.lmdb", b"one"), digest, "a.lmdb")
    for name, other in (("fit", {"state": b"two"}), ("seed", {"state": b"one", "seed": 3})):
        with pytest.raises(UserError, match=rf"{name}\.lmdb: found encoders of digest .*, expected {digest} as a.lmdb"):
            check_encoders(store_of(tmp_path / f"{name}.lmdb", **other), digest, "a.lmdb")  # type: ignore[arg-type]


def test_the_same_weights_elsewhere_are_the_same_encoder(tmp_path: Path) -> None:
    places = [("hub/name", "ab"), ("/folder", "ab"), ("hub/name", "cd")]
    here, there, other = (
        encoders_digest(store_of(tmp_path / f"{place}.lmdb", b"", source=source, weights=weights))
        for place, (source, weights) in enumerate(places)
    )
    assert here == there != other


def test_a_store_that_does_not_say_is_not_compared(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.lmdb", Schema(FIELDS, {})) as writer:
        writer.finish()
    check_encoders(Store(tmp_path / "a.lmdb"), "other", "b.lmdb")
