"""Queries from image files: where a prompt comes from, what is kept, and that a store is made of what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import Project
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_pipelines import make_pipeline

from datamodules.store import Store
from datamodules.store.writer import StoreWriter
from lightning_attr.commands.prepare.any_source import main as prepare_images
from lightning_attr.commands.prepare.queries import main
from lightning_attr.encoders import encoders_digest, read_image, store_image_encoder, store_text_encoder
from lightning_attr.errors import UserError
from lightning_attr.models import load
from lightning_attr.sampling import sampling_of

PARAMETERS = "a purple star\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5"


def save(path: Path, written: str | None = None, size: tuple[int, int] = (32, 32)) -> Path:
    """An image of a colour of its own, with what its generator wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(map(ord, path.name))).integers(0, 255, (size[1], size[0], 3), np.uint8)
    info = PngInfo()
    if written is not None:
        info.add_text("parameters", written)
    Image.fromarray(noise).save(path, **({"pnginfo": info} if path.suffix == ".png" else {}))
    return path


@pytest.fixture
def prepare(stores: Project, tmp_path: Path) -> Callable[..., Store]:
    def run(*words: object) -> Store:
        main([*map(str, words), "--out", str(tmp_path / "q.lmdb"), "--encoders_from", str(stores.store)])
        return Store(tmp_path / "q.lmdb")

    return run


def test_a_store_of_queries(stores: Project, tmp_path: Path, prepare: Callable[..., Store]) -> None:
    path, train = save(tmp_path / "out.png", PARAMETERS), Store(stores.store)
    store = prepare(path)
    meta = store.meta(0)
    assert (len(store), meta.id, meta.captions) == (1, 0, ("a purple star",))
    assert meta.attributes == {"key": "out.png", "seed": 5, "steps": 20, "guidance": 7.0}
    assert {name: field.role for name, field in store.schema.fields.items()} == {
        "latent": "latent",
        "text": "condition",
    }
    assert encoders_digest(store) == encoders_digest(train)
    pixels = torch.from_numpy(np.asarray(Image.open(path)))[None]
    expected = store_image_encoder(train).encode(pixels)[0]
    torch.testing.assert_close(torch.from_numpy(store.read("latent", [0])[0, 0]), expected.half())
    text = store_text_encoder(train).encode(["a purple star"])["text"][0]
    torch.testing.assert_close(torch.from_numpy(store.read("text", [0])[0, 0]), text.half())
    thumb = read_image(store.thumb(0))
    assert thumb is not None
    assert thumb.size == (32, 32)


def test_a_folder_a_jsonl_and_names_that_are_the_same(tmp_path: Path, prepare: Callable[..., Store]) -> None:
    for name in ("a/x.png", "a/y.JPG", "b/x.png", "c/x.webp"):
        save(tmp_path / name)
    (tmp_path / "a/x.txt").write_text("\ufeffone\n")
    (tmp_path / "a/y.txt").write_text("two")
    (tmp_path / "a/notes.md").write_text("no image")
    lines = [{"image": "b/x.png", "prompt": "three", "seed": 1}, {"image": "b/x.png", "prompt": "four", "guidance": 2}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "c/x.txt").write_text("five")
    store = prepare(tmp_path / "q.jsonl", tmp_path / "a", tmp_path / "c/x.webp")
    metas = [store.meta(place) for place in range(len(store))]
    assert [(meta.attributes["key"], meta.caption) for meta in metas] == [
        ("a/x.png", "one"), ("b/x.png", "three"), ("b/x.png#2", "four"), ("x.webp", "five"), ("y.JPG", "two"),
    ]  # fmt: skip
    assert [metas[1].attributes.get("seed"), metas[2].attributes.get("guidance")] == [1, 2.0]


def test_what_is_stated_goes_before_what_is_written(tmp_path: Path, prepare: Callable[..., Store]) -> None:
    save(tmp_path / "out.png", PARAMETERS)
    (tmp_path / "out.txt").write_text("another")
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "out.png", "prompt": "mine", "seed": 9}))
    attributes = {"key": "out.png", "seed": 9, "steps": 20, "guidance": 7.0}
    meta = prepare(tmp_path / "q.jsonl").meta(0)
    assert (meta.caption, meta.attributes) == ("mine", attributes)
    (tmp_path / "q.lmdb").unlink()
    meta = prepare(tmp_path / "out.png", "--prompt", " mine\n too").meta(0)
    assert (meta.caption, meta.attributes) == ("mine too", {**attributes, "seed": 5})


def test_metadata_that_cannot_be_understood_needs_a_prompt(
    tmp_path: Path, prepare: Callable[..., Store], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "out.png", "a\x1bb\nSteps: 20")
    with pytest.raises(UserError, match=r"out.png: parameters: prompt: found a control character .*; give --prompt"):
        prepare(tmp_path / "out.png")
    assert prepare(tmp_path / "out.png", "--prompt", "a star").meta(0).attributes == {"key": "out.png"}
    assert "only what is stated is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "found no lines"),
        ("{", "line 1: not JSON"),
        ('{"prompt": "a"}', "expected an object with the path of an image"),
        ('{"image": 5}', "expected an object with the path of an image"),
        ('{"image": "a\\u0000"}', "expected an object with the path of an image"),
        ("\n[1]", "line 2: found [1]"),
        ('{"image": "out.png", "guidence": 1}', "line 1: found 'guidence', expected image, prompt, seed"),
        ('{"image": "out.png", "seed": "1"}', "line 1: seed: found '1'"),
        ('{"image": "out.png", "prompt": 1}', "line 1: prompt: found 1"),
        ('{"image": "none.png"}', "none.png: no such file"),
        ('{"image": "out.png"}', "found no prompt in it and no out.txt beside it; give --prompt"),
        ('{"image": "q.jsonl"}', "found no image of PNG, JPEG or WebP"),
        ('{"image": "out.gif", "prompt": "a"}', "found an image of format GIF"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, prepare: Callable[..., Store], lines: str, says: str) -> None:
    save(tmp_path / "out.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "out.gif")
    (tmp_path / "q.jsonl").write_text(lines)
    with pytest.raises(UserError) as refused:
        prepare(tmp_path / "q.jsonl")
    assert says in str(refused.value)
    assert not list(tmp_path.glob("q.lmdb*"))


def test_prompts_that_are_not_the_only_one(tmp_path: Path, prepare: Callable[..., Store]) -> None:
    save(tmp_path / "out.png", PARAMETERS)
    (tmp_path / "out.txt").write_text("a red circle")
    with pytest.raises(
        UserError, match=r"out.png: found the prompts 'a purple star' in it and 'a red circle' in out.t"
    ):
        prepare(tmp_path / "out.png")
    (tmp_path / "q.jsonl").write_text('{"image": "out.png", "prompt": "a"}')
    with pytest.raises(UserError, match="--prompt: found one, and another of "):
        prepare(tmp_path / "q.jsonl", "--prompt", "b")
    with pytest.raises(UserError, match="--prompt: found an empty text"):
        prepare(tmp_path / "out.png", "--prompt", " ")


def test_a_crop_and_a_resize_are_said(
    tmp_path: Path, prepare: Callable[..., Store], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "wide.png", PARAMETERS, (96, 64))
    prepare(tmp_path / "wide.png")
    printed = capsys.readouterr()
    assert "wide.png: found 96 x 64 pixels; only the centre square is asked about" in printed.err
    assert "cropped to the centre square" in printed.out
    assert "resized to 32 x 32" in printed.out


def test_a_finished_store_is_compared(
    tmp_path: Path, prepare: Callable[..., Store], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "out.png", PARAMETERS)
    before = prepare(path).digest
    prepare(path)
    assert "is finished already: nothing to do" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"query 0: found captions.0 'a purple star', expected 'b'; choose another --out"
    ):
        prepare(path, "--prompt", "b")
    save(path, PARAMETERS, (40, 40))
    with pytest.raises(UserError, match="found query 0 made from other bytes, expected those of"):
        prepare(path)
    with pytest.raises(UserError, match="found 1 queries, expected 2"):
        prepare(path, save(tmp_path / "more.png"), "--prompt", "a purple star")
    assert Store(tmp_path / "q.lmdb").digest == before


def test_an_image_of_the_training_is_read_as_it_was(tmp_path: Path) -> None:
    """Turned, cropped, resized, and on white where it is transparent: the same latent to the bit."""
    save(tmp_path / "images/a.jpg", size=(60, 40))
    with Image.open(tmp_path / "images/a.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "images/a.jpg", exif=exif)
    save(tmp_path / "images/b.png", size=(33, 50))
    for name in ("a", "b"):
        (tmp_path / f"images/{name}.txt").write_text(f"caption {name}")
    prepare_images([str(tmp_path / "images"), "--out", str(tmp_path / "t.lmdb"), "--size", "16", "--workers", "0"])
    main([str(tmp_path / "images"), "--out", str(tmp_path / "q.lmdb"), "--encoders_from", str(tmp_path / "t.lmdb")])
    train, queries = Store(tmp_path / "t.lmdb"), Store(tmp_path / "q.lmdb")
    for name in ("latent", "text"):
        assert np.array_equal(train.read(name, [0, 1])[:, :1], queries.read(name, [0, 1])[:, :1])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_encoders_of_a_pipeline(tmp_path: Path, family: str) -> None:
    make_pipeline(family, tmp_path / "pipeline")
    path = save(tmp_path / "out.png", "a red cat\nSteps: 3, Seed: 1, CFG scale: 2", (16, 16))
    main([str(path), "--out", str(tmp_path / "q.lmdb"), "--model", str(tmp_path / "pipeline")])
    model, store = load(tmp_path / "pipeline"), Store(tmp_path / "q.lmdb")
    model.accepts(store)
    assert sampling_of(store, [0]) == ([1], 3, 2.0)
    assert store.read("latent", [0]).std() > 0


def test_a_killed_run_goes_on(tmp_path: Path, prepare: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"{place:02}.png", PARAMETERS) for place in range(20)]
    whole = prepare(*paths).digest
    (tmp_path / "q.lmdb").unlink()
    write = StoreWriter.write

    def killed(self: StoreWriter, sample: object) -> None:
        if len(self) == 18:
            raise KeyboardInterrupt
        write(self, sample)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(*paths)
    with pytest.raises(UserError, match="give the same arguments again or remove that file"):
        prepare(*paths, "--prompt", "b")
    assert prepare(*paths).digest == whole


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--encoders_from: expected the training store, or --model"),
        (["--encoders_from", "STORE", "--model", "."], "--encoders_from: expected the training store, or --model"),
        (["--encoders_from", "STORE", "--size", "64"], "--size: found 64, expected 32"),
        (["--model", "none"], "--model none: found no model_index.json"),
    ],
)
def test_encoders_that_are_not_there(stores: Project, tmp_path: Path, words: list[str], says: str) -> None:
    path = save(tmp_path / "out.png", PARAMETERS)
    words = [str(stores.store) if word == "STORE" else word for word in words]
    with pytest.raises(UserError) as refused:
        main([str(path), "--out", str(tmp_path / "q.lmdb"), *words])
    assert says in str(refused.value)
