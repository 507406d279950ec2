import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.store import Store
from lightning_attr.commands.prepare.drawn import planted_ids
from lightning_attr.commands.prepare.scenes import SHAPES, Scene, captions, draw_scene, render
from lightning_attr.commands.prepare.shapes import main
from lightning_attr.encoders import image_encoder, text_encoder
from lightning_attr.errors import UserError


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training store of 120 images, 6 of them planted, and a held-out one of 20."""
    folder = tmp_path_factory.mktemp("shapes")
    train, val = folder / "train.lmdb", folder / "val.lmdb"
    main(["--out", str(train), "--val", str(val), "--count", "120", "--val_count", "20", "--planted", "6"])
    return train, val


def test_shapes_of_the_stores(stores: tuple[Path, Path]) -> None:
    with Store(stores[0]) as train, Store(stores[1]) as val:
        assert (len(train), len(val)) == (120, 20)
        assert not set(train.ids) & set(val.ids)
        assert train.schema == val.schema
        assert train.encoder_state("image") == val.encoder_state("image")
        assert train.read("latent", [0, 1]).shape == (2, 1, 4, 8, 8)
        assert train.read("text", [0, 1]).shape == (2, 3, 16, 64)


def test_planted_concept_is_rare_and_its_own(stores: tuple[Path, Path]) -> None:
    with Store(stores[0]) as store:
        metas = [store.meta(i) for i in range(len(store))]
    planted = [i for i, meta in enumerate(metas) if meta.attributes["planted"]]
    assert len(planted) == 6
    assert [i // 20 for i in planted] == list(range(6))  # spread: one in every twenty
    for i, meta in enumerate(metas):
        for caption in meta.captions:
            assert ("purple" in caption.split()) == ("star" in caption.split()) == (i in planted)
    assert metas[planted[0]].attributes == {"planted": True, "shape": "star", "colour": "purple"}


def test_no_caption_is_cut_by_the_text_encoder(stores: tuple[Path, Path]) -> None:
    """Captions that differ only in their last word must have different states."""
    with Store(stores[0]) as store:
        encoder = text_encoder(store.schema.encoders["text"], None)
        texts = [caption for i in range(len(store)) for caption in store.meta(i).captions]
    states = encoder.encode([*texts, *(f"{text} extra" for text in texts)])["text"]
    before, after = states.chunk(2)
    assert ((before - after).abs().amax((1, 2)) > 0.1).all()


def test_latents_show_the_drawn_scene(stores: tuple[Path, Path]) -> None:
    with Store(stores[0]) as store:
        encoder = image_encoder(store.schema.encoders["image"], store.encoder_state("image"))
        decoded = encoder.decode(torch.as_tensor(store.read("latent", list(range(120))))[:, 0]).float()
        rare = planted_ids(0, range(120), 6)
        drawn = np.stack([np.asarray(render(draw_scene(0, id, id in rare), 32)) for id in range(120)])
        thumb = np.asarray(Image.open(io.BytesIO(store.thumb(5))).convert("RGB"), dtype=float)
    error = (decoded - torch.from_numpy(drawn).float()).square().mean()
    assert float(10 * torch.log10(255**2 / error)) > 20
    assert thumb.shape == (96, 96, 3)
    assert np.abs(thumb.reshape(32, 3, 32, 3, 3).mean((1, 3)) - drawn[5]).mean() < 8


def test_scene_is_as_its_caption_says() -> None:
    scene = Scene("circle", "red", "small", "top", "left", "white")
    assert captions(scene)[0] == "a small red circle in the top left on a white background"
    image = np.asarray(render(scene, 32), dtype=int)
    red = (image[..., 0] - image[..., 1] > 100).nonzero()
    assert red[0].mean() == pytest.approx(0.32 * 32, abs=1)
    assert red[1].mean() == pytest.approx(0.32 * 32, abs=1)
    large = np.asarray(render(Scene("circle", "red", "large", "top", "left", "white"), 32), dtype=int)
    assert (large[..., 0] - large[..., 1] > 100).sum() > 2 * len(red[0])


def test_every_shape_looks_different() -> None:
    images = [np.asarray(render(Scene(shape, "blue", "large", "middle", "middle", "white"), 32)) for shape in SHAPES]
    images.append(np.asarray(render(Scene("star", "purple", "large", "middle", "middle", "white"), 32)))
    for i, one in enumerate(images):
        for other in images[:i]:
            assert np.abs(one.astype(int) - other).max(-1).astype(bool).sum() > 30


def test_edges_are_antialiased() -> None:
    image = np.asarray(render(Scene("diamond", "blue", "large", "middle", "middle", "white"), 32))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_same_command_same_store(stores: tuple[Path, Path], tmp_path: Path) -> None:
    again, other = tmp_path / "again.lmdb", tmp_path / "other.lmdb"
    main(["--out", str(again), "--count", "120", "--planted", "6"])
    main(["--out", str(other), "--count", "120", "--planted", "6", "--seed", "5"])
    with Store(stores[0]) as one, Store(again) as two, Store(other) as three:
        assert one.digest == two.digest != three.digest


def test_finished_store_is_left_alone(stores: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--out", str(stores[0]), "--count", "120", "--planted", "6"]
    main(command)
    assert "nothing to do" in capsys.readouterr().out
    for more, message in (
        (["--seed", "1"], "found seed 0, expected 1"),
        (["--count", "100"], "found count 120, expected 100"),
        (["--planted", "5"], "found planted 6, expected 5"),
        (["--flips", "true"], "found fields.latent.shape"),
        (["--size", "64", "--patch", "8"], "found encoders.image.patch 4, expected 8"),
    ):
        with pytest.raises(UserError, match=message):
            main([*command, *more])
    # The held-out images are the same, but their latents are in the space of another training set.
    fewer = ["--count", "120", "--val_count", "20", "--planted", "5"]
    with pytest.raises(UserError, match=r"val\.lmdb: .*found planted 6, expected 5"):
        main(["--out", f"{stores[0]}.2", "--val", str(stores[1]), *fewer])


def test_mistakes_are_named(tmp_path: Path) -> None:
    for more, message in (
        (["--val", str(tmp_path / "x.lmdb")], "expected another path than --out"),
        (["--planted", "900"], "--planted: found 900, expected at most --count, which is 800"),
        (["--size", "30"], "30 is not a multiple of patch 4"),
        (["--count", "0"], "--count: found 0, expected at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            main(["--out", str(tmp_path / "x.lmdb"), *more])
