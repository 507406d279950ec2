import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.store import Store
from lightning_attr.commands.prepare.drawings import main
from lightning_attr.drawings.artists import artist_name
from lightning_attr.drawings.drawing import draw_one, render
from lightning_attr.encoders import image_encoder
from lightning_attr.errors import UserError

COMMAND = ["--count", "120", "--val_count", "20", "--planted", "6", "--kinds", "2", "--duplicates", "4"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training store of 120 drawings and 4 near-duplicates, and a held-out one of 20."""
    folder = tmp_path_factory.mktemp("drawings")
    train, val = folder / "train.lmdb", folder / "val.lmdb"
    main(["--out", str(train), "--val", str(val), *COMMAND])
    return train, val


def test_stores_know_what_each_drawing_shows(stores: tuple[Path, Path]) -> None:
    with Store(stores[0]) as train, Store(stores[1]) as val:
        assert (len(train), len(val)) == (124, 20)
        assert not set(train.ids) & set(val.ids)
        assert train.schema == val.schema
        assert train.read("latent", [0]).shape == (1, 1, 8, 16, 16)
        metas = [train.meta(position) for position in range(len(train))]
    planted = [meta for meta in metas[:120] if meta.attributes["planted"]]
    assert [meta.attributes["thing"] for meta in planted] == ["gleb", "frig"] * 3
    plain = draw_one(0, 5, range(60))
    assert metas[5].attributes == {**plain.attributes(), "planted": False}
    assert metas[5].captions == plain.captions()
    for meta in metas[120:]:
        original = metas[meta.attributes["duplicate_of"]]
        assert meta.captions == original.captions


def test_latents_and_thumbnails_show_the_drawing(stores: tuple[Path, Path]) -> None:
    with Store(stores[0]) as store:
        encoder = image_encoder(store.schema.encoders["image"], store.encoder_state("image"))
        decoded = encoder.decode(torch.as_tensor(store.read("latent", [5]))[:, 0]).float()[0].numpy()
        thumb = np.asarray(Image.open(io.BytesIO(store.thumb(5))).convert("RGB"), dtype=float)
    drawn = np.asarray(render(draw_one(0, 5, range(60)), 64), dtype=float)
    assert np.abs(decoded - drawn).mean() < 10
    assert np.abs(thumb - drawn).mean() < 10


def test_other_artists_for_the_same_encoders(stores: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.lmdb"
    more = ["--first_artist", "60", "--artists", "2", "--first_id", "1000", "--encoders_from", str(stores[0])]
    main(["--out", str(other), "--count", "12", *more])
    with Store(stores[0]) as train, Store(other) as store:
        assert store.encoder_state("image") == train.encoder_state("image")
        assert list(store.ids) == list(range(1000, 1012))
        artists = {store.meta(position).attributes["artist"] for position in range(12)}
        known = {train.meta(position).attributes["artist"] for position in range(len(train))}
    assert len(artists) == 2
    assert not artists & known
    with pytest.raises(UserError, match="was made from something else: found basis"):
        main(["--out", str(other), "--count", "12", *more[:-1], str(_refitted(tmp_path))])


def test_the_rare_may_be_an_artist(tmp_path: Path) -> None:
    path = tmp_path / "store.lmdb"
    main(["--out", str(path), "--count", "40", "--planted", "5", "--rare", "artist", "--artists", "3"])
    with Store(path) as store:
        metas = [store.meta(position) for position in range(40)]
    by = {
        planted: {meta.attributes["artist"] for meta in metas if meta.attributes["planted"] is planted}
        for planted in (True, False)
    }
    assert by == {True: {artist_name(3)}, False: {artist_name(number) for number in range(3)}}
    planted = [meta for meta in metas if meta.attributes["planted"]]
    assert len(planted) == 5
    assert all(meta.captions[0].endswith(f"by {artist_name(3)}") for meta in planted)


def _refitted(folder: Path) -> Path:
    path = folder / "refitted.lmdb"
    main(["--out", str(path), "--count", "30", "--seed", "4"])
    return path


@pytest.mark.slow
def test_a_killed_run_goes_on(stores: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "train.lmdb"
    arguments = ["--out", str(path), *COMMAND]
    process = subprocess.Popen([sys.executable, "-m", "lightning_attr.main", "prepare", "drawings", *arguments])
    while process.poll() is None and not list(tmp_path.glob("train.lmdb*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    main(arguments)
    with Store(path) as store, Store(stores[0]) as expected:
        assert store.digest == expected.digest


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--planted", "900"], "--planted: found 900, expected at most --count, which is 30"),
        (["--duplicates", "31"], "--duplicates: found 31, expected at most --count"),
        (["--size", "30"], "30 is not a multiple of patch 4"),
        (["--artists", "0"], "--artists: found 0, expected at least 1"),
        (["--encoders_from", "nowhere.lmdb"], "nowhere.lmdb"),
    ],
)
def test_mistakes_are_named(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main(["--out", str(tmp_path / "x.lmdb"), "--count", "30", *more])
    assert not list(tmp_path.iterdir())
