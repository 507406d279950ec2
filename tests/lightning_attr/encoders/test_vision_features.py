"""Features of DINO, DINOv2 and CLIP models, loaded from folders."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from vision_models import save_vision_model

from lightning_attr.encoders import VisionFeatures
from lightning_attr.errors import UserError

transformers: Any = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {kind: save_vision_model(kind, root / kind) for kind in ("dino", "dinov2", "clip")}


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Of several sizes; none is that of the models."""
    rng = np.random.default_rng(0)
    sizes = [(24, 24), (40, 24), (17, 30)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_dino_gives_the_class_token(folders: dict[str, Path], pictures: list[Image.Image], kind: str) -> None:
    features = VisionFeatures(str(folders[kind])).encode(pictures)
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    model = transformers.AutoModel.from_pretrained(folders[kind])
    with torch.no_grad():
        states = [model(**processor(picture, return_tensors="pt")).last_hidden_state[0, 0] for picture in pictures]
    assert features.shape == (3, 16)
    torch.testing.assert_close(features, torch.stack(states))


def test_clip_gives_the_embedding_that_it_compares_with_texts(
    folders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    features = VisionFeatures(str(folders["clip"])).encode(pictures)
    processor = transformers.AutoImageProcessor.from_pretrained(folders["clip"])
    model = transformers.CLIPModel.from_pretrained(folders["clip"])
    with torch.no_grad():
        pixels = processor(pictures, return_tensors="pt").pixel_values
        expected = model.visual_projection(model.vision_model(pixels).pooler_output)
    assert features.shape == (3, 12)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("kind", ["resnet", "convnext", "mobilenet", "siglip"])
def test_models_without_a_class_token_give_what_they_pool(
    tmp_path: Path, pictures: list[Image.Image], kind: str
) -> None:
    folder = save_vision_model(kind, tmp_path / kind)
    features = VisionFeatures(str(folder)).encode(pictures)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = transformers.AutoModel.from_pretrained(folder)(pixel_values=pixels).pooler_output.flatten(1)
    assert features.shape == expected.shape
    torch.testing.assert_close(features, expected)


def test_a_class_token_within_a_larger_model(tmp_path: Path, pictures: list[Image.Image]) -> None:
    folder = save_vision_model("clip-vision", tmp_path / "clip-vision")
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = transformers.AutoModel.from_pretrained(folder)(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(VisionFeatures(str(folder)).encode(pictures), expected)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bert", "found BertModel, expected a model of images"), ("mae", "found other features at a second look")],
)
def test_models_that_give_no_features_of_a_picture(tmp_path: Path, kind: str, message: str) -> None:
    folder = save_vision_model(kind, tmp_path / kind)
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=message):
        VisionFeatures(str(folder))
    assert torch.equal(state, torch.get_rng_state())


def test_weights_of_one_variant_alone_are_found(tmp_path: Path, pictures: list[Image.Image]) -> None:
    folder = save_vision_model("dinov2", tmp_path / "dinov2")
    expected = VisionFeatures(str(folder)).encode(pictures)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    torch.testing.assert_close(VisionFeatures(str(folder)).encode(pictures), expected)
    (folder / "model.fp16.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"found weights as pytorch_model\.bin, which could run code"):
        VisionFeatures(str(folder))


def test_a_config_that_names_code_of_its_own(tmp_path: Path) -> None:
    folder = save_vision_model("dinov2", tmp_path / "dinov2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "own.py").write_text("raise SystemExit('run')")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(UserError, match="found auto_map, expected a model without"):
        VisionFeatures(str(folder))


def test_a_file_without_all_weights_is_refused(tmp_path: Path) -> None:
    """The missing ones would be drawn at random, and the features mean nothing."""
    folder = save_vision_model("dinov2", tmp_path / "dinov2")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.mlp.fc1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"found no weights encoder\.layer\.1\.mlp\.fc1\.weight"):
        VisionFeatures(str(folder))


@pytest.mark.parametrize("lost", ["preprocessor_config.json", "model.safetensors", "config.json"])
def test_a_folder_that_lacks_a_file_is_named(tmp_path: Path, lost: str) -> None:
    folder = save_vision_model("dino", tmp_path / "dino")
    (folder / lost).unlink()
    with pytest.raises(UserError, match=f"vision model {folder}: expected a hub name or a local folder"):
        VisionFeatures(str(folder))


@pytest.mark.slow
def test_missing_transformers_names_the_extra() -> None:
    program = """
import sys
from lightning_attr.errors import UserError
from lightning_attr.encoders import VisionFeatures
sys.modules["transformers"] = None  # from here on, its import fails
try:
    VisionFeatures("some/model")
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "vision model some/model" in done.stdout
    assert "pip install 'lightning-attr[hf]'" in done.stdout
