import errno
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from small_stores import FIELDS, SCHEMA, sample, samples, write_store

from datamodules.store import Field, Meta, Sample, Schema, Store, StoreWriter, writer
from lightning_attr.errors import StoreError


def test_round_trip(store_path: Path) -> None:
    store = Store(store_path)
    assert len(store) == 150
    assert store.schema == SCHEMA
    assert store.ids.tolist() == list(range(0, 450, 3))
    assert store.caption_counts.tolist() == [1 + id % 3 for id in range(0, 450, 3)]
    assert store.encoder_state("image") == b"fitted numbers"
    assert store.encoder_state("text") is None
    for position, expected in enumerate(samples(150)):
        assert store.meta(position) == expected.meta
        assert store.thumb(position) == expected.thumb
        for name in FIELDS:
            np.testing.assert_array_equal(store.read(name, [position])[0], expected.arrays[name])
    store.verify()


def test_nothing_but_the_store_is_left(store_path: Path) -> None:
    assert os.listdir(store_path.parent) == [store_path.name]


def test_resuming_gives_the_same_store(tmp_path: Path, store_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    for stop in (1, 70, 128, 150):  # within a block, across one, at its end
        with StoreWriter(path, SCHEMA) as writer:
            writer.put_encoder_state("image", b"fitted numbers")
            for item in samples(stop):
                if writer.last_id is None or item.meta.id > writer.last_id:
                    writer.write(item)
            assert len(writer) == stop
        with pytest.raises(StoreError, match="its writer has not finished"):
            Store(path)
        with pytest.raises(StoreError, match="unfinished"):
            Store(f"{path}.partial")
    with StoreWriter(path, SCHEMA) as writer:
        assert writer.encoder_state("image") == b"fitted numbers"
        writer.finish()
    assert Store(path).digest == Store(store_path).digest


def write_slowly(path: Path, written: Connection) -> None:
    """Commit each sample, and say so."""
    with StoreWriter(path, SCHEMA) as writer:
        writer.put_encoder_state("image", b"fitted numbers")
        for item in samples(150):
            if writer.last_id is None or item.meta.id > writer.last_id:
                writer.write(item)
                writer.flush()
                written.send(item.meta.id)
        writer.finish()


def kill_writer(path: Path, after: int, wait: float = 0) -> None:
    """Start a process that writes, and kill it when it has written that id."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=write_slowly, args=(path, sender))
    process.start()
    while receiver.recv() != after:
        pass
    time.sleep(wait)
    process.kill()
    process.join()


def test_resumes_after_kills(tmp_path: Path, store_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    for last in (12, 192, 210):
        kill_writer(path, last)
        with pytest.raises(StoreError, match="its writer has not finished"):
            Store(path)
        with StoreWriter(path, SCHEMA) as writer:
            assert writer.last_id is not None
            assert writer.last_id >= last
    with StoreWriter(path, SCHEMA) as writer:
        for item in samples(150):
            if item.meta.id > (writer.last_id or 0):
                writer.write(item)
        writer.finish()
    Store(path).verify()
    assert Store(path).digest == Store(store_path).digest


@pytest.mark.slow
def test_kills_at_any_moment_of_finishing(tmp_path: Path, store_path: Path) -> None:
    """Waits grow from half a millisecond to a third of a second, for finishing takes longer on a busy machine."""
    finished, attempts = 0, 20
    for attempt in range(attempts):
        path = tmp_path / f"{attempt}.lmdb"
        kill_writer(path, 447, wait=0.0005 * 1.4**attempt)
        if path.exists():
            finished += 1
        else:
            with StoreWriter(path, SCHEMA) as writer:
                assert writer.last_id == 447
                writer.finish()
        Store(path).verify()
        assert Store(path).digest == Store(store_path).digest
    assert 0 < finished < attempts


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    with StoreWriter(path, SCHEMA) as writer:
        with pytest.raises(StoreError, match="another process is writing it"):
            StoreWriter(path, SCHEMA)
        writer.write(sample(1))
    with StoreWriter(path, SCHEMA) as writer:
        assert writer.last_id == 1


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    writer = StoreWriter(path, SCHEMA)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    worker.start()
    try:
        writer.close()
        StoreWriter(path, SCHEMA).close()
    finally:
        worker.kill()
        worker.join()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    StoreWriter(path, SCHEMA).close()
    with pytest.raises(StoreError, match="remove it to start anew"):
        StoreWriter(path, Schema(FIELDS, {}))


def test_a_finished_store_is_not_overwritten(make_store: Callable[[int], Path]) -> None:
    path = make_store(3)
    with pytest.raises(StoreError, match="finished already"):
        StoreWriter(path, SCHEMA)
    assert len(Store(path)) == 3
    StoreWriter(path.with_name("b.lmdb"), SCHEMA).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: Sample(item.meta, {**item.arrays, "noise": np.zeros(3)}, b""), "found arrays"),
        (lambda item: Sample(item.meta, {"latent": item.arrays["latent"]}, b""), "found arrays"),
        (
            lambda item: Sample(item.meta, {**item.arrays, "text": np.zeros((3, 5, 8))}, b""),
            "float64, expected .* float16",
        ),
        (lambda item: Sample(item.meta, {**item.arrays, "text": item.arrays["text"][:2]}, b""), r"\[2, 5, 8\]"),
        (lambda item: Sample(Meta(9, ("a",) * 4, None, None, {}), item.arrays, b""), "4 captions, expected at most 3"),
        (lambda item: Sample(Meta(5, (), None, None, {}), item.arrays, b""), "expected ascending ids"),
    ],
)
def test_wrong_samples(tmp_path: Path, change: Callable[[Sample], Sample], message: str) -> None:
    with StoreWriter(tmp_path / "a.lmdb", SCHEMA) as writer:
        writer.write(sample(5))
        with pytest.raises(StoreError, match=message):
            writer.write(change(sample(9)))
        assert len(writer) == 1


def test_wrong_schemas(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="without fields"):
        StoreWriter(tmp_path / "a.lmdb", Schema({}, {}))
    with pytest.raises(StoreError, match="'meta', which the store itself uses"):
        StoreWriter(tmp_path / "a.lmdb", Schema({"meta": Field((1,), "float16")}, {}))
    with pytest.raises(StoreError, match="expected a number type such as float16"):
        Field((1,), "string")
    with pytest.raises(StoreError, match="at least 1"):
        Field((2, 0), "float16")
    with pytest.raises(StoreError, match="role 'picture', expected one of latent, condition, or none"):
        Field((1,), "float16", "picture")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="'code' of role latent"):
        Schema({"code": Field((1, 4), "float16", "latent")}, {})
    with pytest.raises(StoreError, match="2 rows of pooled, expected 3, one a caption, or 1"):
        Schema({"text": Field((3, 4), "float16", "condition"), "pooled": Field((2, 4), "float16", "condition")}, {})
    with pytest.raises(StoreError, match="condition 'epoch', expected another name"):
        Schema({"epoch": Field((1, 4), "float16", "condition")}, {})
    assert Schema({"epoch": Field((1, 4), "float16")}, {}).inputs == ()


def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAP_BYTES", 128 * 1024)
    write_store(tmp_path / "a.lmdb", 300)
    Store(tmp_path / "a.lmdb").verify()


def test_samples_larger_than_a_block(tmp_path: Path) -> None:
    field = Field((3, 100, 500), "float32", "condition")  # 600 kB
    arrays = [np.random.default_rng(id).standard_normal(field.shape).astype("float32") for id in range(5)]
    with StoreWriter(tmp_path / "a.lmdb", Schema({"text": field, "tag": Field((2,), "int16")}, {})) as writer:
        for id, array in enumerate(arrays):
            writer.write(Sample(Meta(id, (), None, None, {}), {"text": array, "tag": np.full(2, id, "int16")}, b""))
        writer.finish()
    store = Store(tmp_path / "a.lmdb")
    store.verify()
    np.testing.assert_array_equal(store.read("text", [3, 1, 3]), [arrays[3], arrays[1], arrays[3]])
    np.testing.assert_array_equal(store.read("text", [4, 0], rows=[2, 1]), [arrays[4][2], arrays[0][1]])
    np.testing.assert_array_equal(store.read("tag", range(5))[:, 0], range(5))


def test_an_empty_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.lmdb", SCHEMA) as writer:
        writer.finish()
    store = Store(tmp_path / "a.lmdb")
    store.verify()
    assert len(store) == 0
    assert store.read("latent", []).shape == (0, 2, 3, 4, 4)


def test_the_digest_changes_with_anything(tmp_path: Path) -> None:
    base = sample(7)
    text = base.arrays["text"].copy()
    text[0, 0, 0] += 1
    variants = [
        base,
        Sample(base.meta, {**base.arrays, "text": text}, base.thumb),
        Sample(base.meta, base.arrays, b"other"),
        Sample(Meta(8, *list(vars(base.meta).values())[1:]), base.arrays, base.thumb),
        Sample(Meta(7, base.meta.captions, None, None, {}), base.arrays, base.thumb),
    ]
    digests = set()
    for place, item in enumerate(variants):
        with StoreWriter(tmp_path / f"{place}.lmdb", SCHEMA) as writer:
            writer.write(item)
            writer.finish()
        digests.add(Store(tmp_path / f"{place}.lmdb").digest)
    with StoreWriter(tmp_path / "state.lmdb", SCHEMA) as writer:
        writer.put_encoder_state("image", b"x")
        writer.write(base)
        writer.finish()
    digests.add(Store(tmp_path / "state.lmdb").digest)
    assert len(digests) == 6


def half_written(path: Path, count: int) -> bytes:
    """The bytes of an unfinished store of ``count`` samples."""
    with StoreWriter(path, SCHEMA) as writer:
        writer.put_encoder_state("image", b"fitted numbers")
        for item in samples(count):
            writer.write(item)
    return Path(writer.partial).read_bytes()


def resume(path: Path, left: bytes, count: int) -> str:
    """Finish what was left, and return the store's digest; it must verify."""
    Path(f"{path}.partial").write_bytes(left)
    with StoreWriter(path, SCHEMA) as writer:
        writer.put_encoder_state("image", b"fitted numbers")
        for item in samples(count):
            if writer.last_id is None or item.meta.id > writer.last_id:
                writer.write(item)
        writer.finish()
    with Store(path) as store:
        store.verify()
        return store.digest


def resume_damaged(path: Path, damaged: list[bytes], expected: str) -> None:
    """Each gives the right store or one message, in a process of its own for LMDB may end it."""
    for left in damaged:
        found = ""
        try:
            assert resume(path, left, 90) == expected
            path.unlink()
        except StoreError as error:
            found = str(error)
            os.unlink(f"{path}.partial")
        assert not found or found.startswith(f"{path}.partial: ")
        assert "\n" not in found
        assert os.listdir(path.parent) == []


@pytest.mark.parametrize("place", ["anywhere", "page heads", "first pages", "ends"])
def test_what_damage_left_is_refused_or_made_whole(tmp_path: Path, place: str) -> None:
    (tmp_path / "a").mkdir()
    good = half_written(tmp_path / "a.lmdb", 70)
    expected = resume(tmp_path / "a.lmdb", good, 90)
    rng = random.Random(0)
    spots = {
        "anywhere": lambda: rng.randrange(len(good)),
        "page heads": lambda: rng.randrange(len(good) // 4096) * 4096 + rng.randrange(32),
        "first pages": lambda: rng.randrange(2) * 4096 + rng.randrange(160),
    }
    damaged = [good[: len(good) // 3], good[: 2 * len(good) // 3], good[:-1], good[:100], good + b"x" * 5000]
    if place in spots:
        damaged = []
        for _ in range(40):
            flipped = bytearray(good)
            flipped[spots[place]()] ^= 1 << rng.randrange(8)
            damaged.append(bytes(flipped))
    arguments = (tmp_path / "a" / "a.lmdb", damaged, expected)
    process = multiprocessing.get_context("fork").Process(target=resume_damaged, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def write_within(path: Path, limit: int, said: Connection) -> None:
    """Write where files may have so many bytes, which LMDB is told as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with pytest.raises(StoreError) as error:
        write_store(path, 300)
    said.send(str(error.value))


@pytest.mark.parametrize("limit", [100, 5_000, 40_000, 300_000])
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GROUP_SAMPLES", 64)
    path = tmp_path / "a.lmdb"
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=write_within, args=(path, limit, sender))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    message = receiver.recv()
    assert message.startswith(f"{path}.partial: no space left on the device")
    assert "run the same command again" in message
    assert os.listdir(tmp_path) == ["a.lmdb.partial"]
    with StoreWriter(path, SCHEMA) as again:
        assert (len(again) > 0) == (limit == 300_000)
        for item in samples(300):
            if again.last_id is None or item.meta.id > again.last_id:
                again.write(item)
        again.put_encoder_state("image", b"fitted numbers")
        again.finish()
    assert Store(path).digest == Store(write_store(tmp_path / "b.lmdb", 300)).digest


def test_a_disk_that_is_full_at_the_end_keeps_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.lmdb"

    def full(name: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(writer, "seal_pages", full)
        with pytest.raises(StoreError, match="no space left on the device"):
            write_store(path, 10)
    assert os.listdir(tmp_path) == ["a.lmdb.partial"]
    with StoreWriter(path, SCHEMA) as again:
        assert len(again) == 10
        again.finish()
    assert Store(path).digest == Store(write_store(tmp_path / "b.lmdb", 10)).digest


def test_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/a\.lmdb\.partial: "):
        StoreWriter(tmp_path / "file" / "a.lmdb", SCHEMA)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: float) -> None:
    item = sample(5)
    item.arrays["latent"][0, 0, 0, 0] = number
    with StoreWriter(tmp_path / "a.lmdb", SCHEMA) as writer, pytest.raises(StoreError, match=r"sample 5: .* in latent"):
        writer.write(item)


def test_what_it_was_made_from_is_kept_beside_the_digest(tmp_path: Path) -> None:
    digests = set()
    for path, file in ((tmp_path / "a.lmdb", "one"), (tmp_path / "b.lmdb", "other"), (tmp_path / "c.lmdb", "")):
        with StoreWriter(path, SCHEMA) as writer:
            if file:
                writer.put_made_from({"seed": file})
            for item in samples(3):
                writer.write(replace(item, made_from=file))
        with StoreWriter(path, SCHEMA) as writer:
            assert writer.made_from == ({"seed": file} if file else {})
            assert [digest for _, digest in writer.written()] == [file] * 3
            assert [meta for meta, _ in writer.written()] == [item.meta for item in samples(3)]
            writer.finish({"cut": 2} if file else None)
        store = Store(path)
        store.verify()
        assert store.made_from == ({"seed": file} if file else {})
        assert store.notes == ({"cut": 2} if file else {})
        assert [store.file_digest(place) for place in range(3)] == [file] * 3
        digests.add(store.digest)
    assert len(digests) == 1
