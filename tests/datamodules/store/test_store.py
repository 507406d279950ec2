import multiprocessing
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from numpy.typing import NDArray
from small_stores import FIELDS, damage, samples, write_store

from datamodules import Store
from datamodules.store.layout import FORMAT, decode_schema, encode_json
from lightning_attr.errors import StoreError

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    made = list(samples(150))
    return {name: np.stack([item.arrays[name] for item in made]) for name in FIELDS}


@pytest.mark.parametrize(
    "positions",
    [
        range(150), range(64), range(64, 128), range(60, 70), range(10, 140), range(149, -1, -1),
        [149], [0, 0, 149, 3], [63, 64], [5, 6, 8, 9], [7, 9, 8, 10], [],
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", FIELDS)
def test_read_in_any_order(store_path: Path, arrays: Arrays, field: str, positions: list[int]) -> None:
    store, wanted = Store(store_path), np.array(positions, np.int64)
    np.testing.assert_array_equal(store.read(field, positions), arrays[field][wanted])
    rows = np.random.default_rng(0).integers(0, FIELDS[field].shape[0], len(wanted))
    np.testing.assert_array_equal(store.read(field, positions, rows), arrays[field][wanted, rows])


def test_positions(store_path: Path) -> None:
    store = Store(store_path)
    assert store.positions([9, 0, 447, 9]).tolist() == [3, 0, 149, 3]
    for missing in (1, 448, -3):
        with pytest.raises(StoreError, match=f"found no sample {missing}"):
            store.positions([0, missing])


def test_wrong_questions(store_path: Path) -> None:
    store = Store(store_path)
    with pytest.raises(StoreError, match="no field 'noise'"):
        store.read("noise", [0])
    for position in (-1, 150):
        with pytest.raises(StoreError, match="expected 0 to 149"):
            store.read("latent", [0, position])
        with pytest.raises(StoreError, match="expected 0 to 149"):
            store.meta(position)
    with pytest.raises(StoreError, match="expected 0 to 1"):
        store.read("latent", [0], rows=[2])
    with pytest.raises(StoreError, match="expected 2, one per position"):
        store.read("latent", [0, 1], rows=[0])


def test_what_is_no_store(tmp_path: Path, store_path: Path) -> None:
    with pytest.raises(StoreError, match="found no file"):
        Store(tmp_path / "missing.lmdb")
    with pytest.raises(StoreError, match="found a folder"):
        Store(tmp_path)
    for content in (b"", b"text", os.urandom(10_000)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(StoreError, match="not an LMDB file"):
            Store(tmp_path / "other")
    lmdb.open(str(tmp_path / "foreign"), subdir=False).close()
    with pytest.raises(StoreError):
        Store(tmp_path / "foreign")


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_truncated(tmp_path: Path, store_path: Path, share: float) -> None:
    data = store_path.read_bytes()
    (tmp_path / "a.lmdb").write_bytes(data[: int(share * len(data))])
    with pytest.raises(StoreError, match="truncated"):
        Store(tmp_path / "a.lmdb")


def test_another_version(tmp_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.store.layout.VERSION", 3)
    monkeypatch.setattr("datamodules.store.layout.IMPLIED", {})
    write_store(tmp_path / "a.lmdb", 2)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"version 3, expected .* version 2"):
        Store(tmp_path / "a.lmdb")


def test_a_store_of_before_fields_had_roles() -> None:
    plain = {name: {"shape": list(field.shape), "dtype": field.dtype} for name, field in FIELDS.items()}
    record = {"fields": {**plain, "noise": plain["latent"]}, "encoders": {}, "format": FORMAT, "version": 1}
    schema = decode_schema("a.lmdb", encode_json(record))
    assert {name: schema.fields[name] for name in FIELDS} == FIELDS
    assert schema.fields["noise"].role is None
    assert (schema.conditions, schema.captions) == (("text",), FIELDS["text"].shape[0])


@pytest.mark.parametrize("field", FIELDS)
def test_a_flipped_bit_in_a_field(tmp_path: Path, store_path: Path, arrays: Arrays, field: str) -> None:
    path = Path(shutil.copy(store_path, tmp_path / "a.lmdb"))
    damage(path, arrays[field][70, 0].tobytes())
    store = Store(path)
    for positions, rows in (([70], None), (range(150), None), ([3, 70, 1], None), (range(64, 128), None), ([70], [0])):
        with pytest.raises(StoreError, match=f"damaged, {field} of positions? "):
            store.read(field, positions, rows)
    np.testing.assert_array_equal(store.read(field, [69, 71]), arrays[field][[69, 71]])  # the rest is still good
    with pytest.raises(StoreError, match=f"{field}: positions 64 to 127"):
        store.verify()


def test_a_flipped_bit_in_a_thumbnail(tmp_path: Path, store_path: Path) -> None:
    path = Path(shutil.copy(store_path, tmp_path / "a.lmdb"))
    damage(path, list(samples(150))[70].thumb)
    store = Store(path)
    with pytest.raises(StoreError, match="damaged, thumb of position 70"):
        store.thumb(70)
    with pytest.raises(StoreError, match="thumb: position"):
        store.verify()


def test_a_flipped_bit_in_small_values(tmp_path: Path, store_path: Path) -> None:
    path = Path(shutil.copy(store_path, tmp_path / "a.lmdb"))
    damage(path, b"caption 0 of 210")
    with pytest.raises(StoreError, match="damaged in its trees or small values"):
        Store(path)


@pytest.mark.parametrize("number", [-1, 1, 1 << 40, (1 << 63) - 1, -(1 << 63)])
@pytest.mark.parametrize("place", [0, 2, -1])
def test_the_numbers_of_a_seal_are_checked_before_use(
    tmp_path: Path, store_path: Path, place: int, number: int
) -> None:
    """The seal ends in: numbers of pages, a checksum, how many pages, eight letters."""
    data = bytearray(store_path.read_bytes())
    count = int.from_bytes(data[-16:-8], "little")
    numbers = np.frombuffer(data, "<i8", count, offset=len(data) - 24 - 8 * count)
    numbers[place] = number
    (tmp_path / "a.lmdb").write_bytes(data)
    with pytest.raises(StoreError, match=r"a\.lmdb: damaged"):
        Store(tmp_path / "a.lmdb")


def read_everything(path: Path, flips: list[tuple[int, int]], good: Path) -> None:
    """Flip one bit after the other, and read all: right data or a StoreError, else exit with an error."""
    expected, data = contents(Store(good)), bytearray(path.read_bytes())
    for at, bit in flips:
        data[at] ^= 1 << bit
        flipped = path.with_name(f"{at}.lmdb")
        flipped.write_bytes(data)
        data[at] ^= 1 << bit
        found, caught = {}, False
        try:
            store = Store(flipped)
            found = contents(store)
            store.verify()
        except StoreError:
            caught = True
        assert caught or found.keys() == expected.keys()
        assert all(value is None or value == expected[key] for key, value in found.items()), (at, bit)
        flipped.unlink()


def contents(store: Store) -> dict[tuple[str, int], bytes | None]:
    """Everything in a store; None for what gives a StoreError."""

    def attempt(read: Callable[[], bytes]) -> bytes | None:
        try:
            return bytes(read())
        except StoreError:
            return None

    found = {("ids", 0): attempt(lambda: store.ids.tobytes() + store.caption_counts.tobytes())}
    for position in range(len(store)):
        found["meta", position] = attempt(lambda: repr(store.meta(position)).encode())  # noqa: B023
        found["thumb", position] = attempt(lambda: store.thumb(position))  # noqa: B023
        for name in FIELDS:
            found[name, position] = attempt(lambda: store.read(name, [position]).tobytes())  # noqa: B023
    for name in FIELDS:
        found[name, -1] = attempt(lambda: store.read(name, range(len(store))).tobytes())  # noqa: B023
    return found


@pytest.mark.parametrize("place", ["anywhere", "page heads", "first pages"])
def test_flipped_bits_anywhere_never_crash_nor_lie(tmp_path: Path, place: str) -> None:
    good = write_store(tmp_path / "good.lmdb", 70)
    size = good.stat().st_size
    rng = random.Random(0)
    spots = {
        "anywhere": lambda: rng.randrange(size),
        "page heads": lambda: rng.randrange(size // 4096) * 4096 + rng.randrange(32),
        "first pages": lambda: rng.randrange(2) * 4096 + rng.randrange(160),
    }
    flips = [(spots[place](), rng.randrange(8)) for _ in range(25)]
    path = Path(shutil.copy(good, tmp_path / "a.lmdb"))
    process = multiprocessing.get_context("fork").Process(target=read_everything, args=(path, flips, good))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_verify_reports_progress(store_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    Store(store_path).verify(lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] == 150 * 2 + 3 + 3


def test_a_replaced_file(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.lmdb", 10)
    old = Store(path)
    stored = pickle.dumps(old)
    os.replace(write_store(tmp_path / "b.lmdb", 12), path)
    new = Store(path)
    assert len(new) == 12
    np.testing.assert_array_equal(old.read("latent", range(10)), new.read("latent", range(10)))  # the old is still open
    assert old.thumb(9) == new.thumb(9)
    with pytest.raises(StoreError, match="another store has taken its place"):
        pickle.loads(stored).read("latent", [0])
    old.close()
    with pytest.raises(StoreError, match="another store has taken its place"):
        old.read("latent", [0])


def test_closing_one_of_two(store_path: Path) -> None:
    first, second = Store(store_path), Store(store_path)
    with first:
        pass
    assert second.meta(0) == first.meta(0)
