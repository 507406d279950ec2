"""Similarities against plain loops over views and captions."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import Refused
from miniature import Project
from PIL import Image, ImageOps
from torch import Tensor
from vision_models import save_vision_model

from datamodules import Field, Meta, Sample, Schema, Store, StoreWriter
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.encoders import VisionFeatures, jpeg
from lightning_attr.errors import UserError
from lightning_attr.methods import Method, Similarity, VisionSimilarity
from lightning_attr.methods.base import Context

FIELDS = {"latent": Field((2, 2, 4, 4), "float32", "latent"), "text": Field((2, 5, 6), "float32", "condition")}


def write_store(path: Path, ids: list[int], side: int, thumb: bytes | None = None) -> Store:
    """Random everything; samples with odd ids have one caption, and a padding in place of the second."""
    with StoreWriter(path, Schema(FIELDS, {})) as writer:
        for id in ids:
            rng = np.random.default_rng(id)
            captions = ("one",) if id % 2 else ("one", "two")
            arrays = {name: rng.standard_normal(field.shape).astype(np.float32) for name, field in FIELDS.items()}
            arrays["text"][len(captions) :] = 0
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((side, side))
            picture = jpeg(np.asarray(coarse)) if thumb is None else thumb
            writer.write(Sample(Meta(id, captions, None, None, {}), arrays, picture))
        writer.finish()
    return Store(path)


def read(store: Store, views: int) -> dict[str, Tensor]:
    at = np.arange(len(store))
    return {
        "id": torch.tensor(store.ids),
        "latent": torch.from_numpy(store.read("latent", at))[:, :views],
        "text": torch.from_numpy(store.read("text", at)),
        "captions": torch.tensor(store.caption_counts.astype(np.int64)),
    }


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Queries 8, 9 and 11, of which only the first view and caption count, and samples whose thumbnails are larger."""
    query_store = write_store(tmp_path / "queries.lmdb", [8, 9, 11], side=24)
    queries = read(query_store, views=1)
    queries["text"] = queries["text"][:, :1]
    store = write_store(tmp_path / "train.lmdb", [5, 6, 8, 20], side=40)
    return Context(queries, query_store, store, None, torch.device("cpu"))


def scores(method: Method, context: Context, batch: dict[str, Tensor] | None = None) -> Tensor:
    method.prepare(context)
    (result,) = method.score([method.measure(batch or read(context.store, views=2))])
    return result


def picture(store: Store, sample: int) -> Image.Image:
    return Image.open(io.BytesIO(store.thumb(int(store.positions([sample])[0])))).convert("RGB")


@pytest.mark.parametrize("feature", ["latent", "text"])
def test_similarity_is_the_largest_cosine(context: Context, feature: str) -> None:
    batch = read(context.store, views=2)
    found = scores(Similarity(feature), context)  # type: ignore[arg-type]
    assert found.shape == (3, 4)
    for row, query in enumerate(context.queries[feature][:, 0]):
        for column, sample in enumerate(batch[feature]):
            rows = sample[: int(batch["captions"][column])] if feature == "text" else sample
            cosines = [torch.cosine_similarity(query.flatten(), one.flatten(), dim=0) for one in rows]
            torch.testing.assert_close(found[row, column], torch.stack(cosines).max())


def test_padding_is_no_caption(context: Context) -> None:
    """Its cosine is 0, which is more than that of a caption that is unlike the query."""
    batch = read(context.store, views=2)
    batch["text"][:, 0] = -context.queries["text"][0, 0]
    assert scores(Similarity("text"), context, batch)[0, 0] == pytest.approx(-1)


def test_pixels_are_compared_at_a_common_size(context: Context) -> None:
    found = scores(Similarity("pixel"), context)
    for row, query in enumerate([8, 9, 11]):
        for column, sample in enumerate([5, 6, 8, 20]):
            image = picture(context.store, sample)
            flat = [
                torch.from_numpy(np.asarray(each.resize((64, 64)), np.float32)).flatten() / 127.5 - 1
                for each in (picture(context.query_store, query), image, ImageOps.mirror(image))
            ]
            largest = max(torch.cosine_similarity(flat[0], view, dim=0) for view in flat[1:])
            torch.testing.assert_close(found[row, column], largest, atol=1e-5, rtol=0)
    assert found[0].argmax() == 2  # the same picture, stored smaller
    assert found[0, 2] > 0.95


def test_a_store_without_flips_is_compared_as_it_is(context: Context) -> None:
    """The flip of a query's picture is another picture."""
    flipped = scores(Similarity("pixel"), context)
    plain = scores(Similarity("pixel"), context, read(context.store, views=1))
    assert (plain <= flipped).all()
    assert (plain < flipped).any()


@pytest.mark.parametrize("kind", ["dino", "clip"])
def test_vision_features_of_pictures_and_their_flips(context: Context, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    folder = save_vision_model(kind, tmp_path / kind)
    method = VisionSimilarity(str(folder))
    found = scores(method, context)
    model = VisionFeatures(str(folder))
    for row, query in enumerate([8, 9, 11]):
        for column, sample in enumerate([5, 6, 8, 20]):
            image = picture(context.store, sample)
            wanted, *views = model.encode([picture(context.query_store, query), image, ImageOps.mirror(image)])
            largest = max(torch.cosine_similarity(wanted, view, dim=0) for view in views)
            torch.testing.assert_close(found[row, column], largest)
    settings = {"model": str(folder), "weights": model.weights}
    assert (method.name, method.settings()) == (f"similarity-{kind}", settings)


def test_order_and_batches_do_not_matter(context: Context) -> None:
    whole = scores(Similarity("pixel"), context)
    batch = read(context.store, views=2)
    for places in ([3, 0], [2]):
        part = {name: values[places] for name, values in batch.items()}
        torch.testing.assert_close(scores(Similarity("pixel"), context, part), whole[:, places])


def test_a_thumb_that_is_no_picture_is_named(context: Context, tmp_path: Path) -> None:
    store = write_store(tmp_path / "broken.lmdb", [7], side=8, thumb=b"no picture")
    broken = Context(context.queries, context.query_store, store, None, context.device)
    with pytest.raises(UserError, match=r"broken\.lmdb: found no picture in the thumb of sample 7"):
        scores(Similarity("pixel"), broken)


def test_names_and_settings(context: Context) -> None:
    method = Similarity("text")
    scores(method, context)
    assert (method.name, method.settings()) == ("similarity-text", {"feature": "text"})


def test_pixels_through_the_command_line(project: Project, tmp_path: Path) -> None:
    run_stage(project.args("similarity", run=tmp_path, model__init_args__method__init_args__feature="pixel"))
    found = Scores.load(tmp_path / "scores.safetensors")
    assert found.method == "similarity-pixel"
    assert found.scores.shape == (5, 40)
    assert found.scores.abs().max() <= 1 + 1e-5


def test_a_model_that_is_not_there_is_refused(project: Project, refused: Refused, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    args = project.args(
        "similarity",
        run=tmp_path,
        model__init_args__method="lightning_attr.methods.VisionSimilarity",
        model__init_args__method__init_args__model=tmp_path / "nothing",
    )
    assert f"vision model {tmp_path / 'nothing'}: expected a hub name or a local folder" in refused(args)


@pytest.mark.slow
def test_a_model_of_the_hub_that_was_fetched_before(project: Project, tmp_path: Path) -> None:
    """Its name is no file of which a digest could be taken; that of its weights is among the settings."""
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    cache = tmp_path / "hub" / "models--somebody--model"
    snapshot = save_vision_model("dino", cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    found = []
    for run, model in (("hub-run", "somebody/model"), ("folder-run", str(snapshot))):
        args = project.args(
            "similarity",
            run=tmp_path / run,
            model__init_args__method="lightning_attr.methods.VisionSimilarity",
            model__init_args__method__init_args__model=model,
        )
        offline = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-m", "lightning_attr.main", *args], env=offline, check=True)
        found.append(Scores.load(tmp_path / run / "scores.safetensors"))
    assert torch.equal(found[0].scores, found[1].scores)
    assert found[0].settings["weights"] == found[1].settings["weights"]
    assert found[0].settings["model"] == "somebody/model"
