"""Conditions as pipelines make them; what they are is tested with the models, in ``test_contract.py``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import make_pipeline

from lightning_attr.encoders import PipelineText, text_encoder, time_ids
from lightning_attr.errors import UserError

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Folders of pipelines by family, each made once."""
    root = tmp_path_factory.mktemp("pipelines")

    def make(family: str) -> Path:
        if not (root / family).exists():
            make_pipeline(family, root / family)
        return root / family

    return make


SHAPES = {
    "sd1": {"text": (8, 8)},
    "sdxl": {"text": (8, 14), "pooled": (6,)},
    "sd3": {"text": (13, 16), "pooled": (14,)},  # of two CLIPs side by side, then of T5
    "flux": {"text": (5, 12), "pooled": (8,)},
    "pixart": {"text": (5, 12), "mask": (5,)},
}


@pytest.mark.parametrize("family", SHAPES)
def test_an_encoder_is_rebuilt_from_its_config(made: Make, family: str) -> None:
    encoder = PipelineText(str(made(family)), None if family in ("sd1", "sdxl") else 5)
    assert encoder.conditions == SHAPES[family]
    again = text_encoder(json.loads(json.dumps(encoder.config())), encoder.state())
    texts = ["a cat", "red dog on the mat"]
    first, second = encoder.encode(texts), again.encode(texts)
    assert {name: tuple(value.shape[1:]) for name, value in first.items()} == SHAPES[family]
    assert all(torch.equal(first[name], second[name]) and first[name].dtype == torch.float32 for name in first)
    assert {name: tuple(value.shape) for name, value in encoder.encode([]).items()} == {
        name: (0, *shape) for name, shape in SHAPES[family].items()
    }
    assert {name: tuple(value.shape) for name, value in encoder.null().items()} == SHAPES[family]


def test_no_text_is_zeros_where_the_pipeline_says_so(made: Make, tmp_path: Path) -> None:
    assert not any(value.any() for value in PipelineText(str(made("sdxl"))).null().values())
    shutil.copytree(made("sdxl"), tmp_path / "encoded")
    _put(tmp_path / "encoded", force_zeros_for_empty_prompt=False)
    encoder = PipelineText(str(tmp_path / "encoded"))
    empty = encoder.encode([""])
    assert all(torch.equal(value, empty[name][0]) for name, value in encoder.null().items())
    plain = PipelineText(str(made("sd1")))
    assert torch.equal(plain.null()["text"], plain.encode([""])["text"][0])


def test_of_a_text_what_the_roomiest_encoder_sees_is_counted(made: Make) -> None:
    long = "a cat on the mat the red dog on the blue mat"  # 12 words
    clip, both = PipelineText(str(made("sdxl"))), PipelineText(str(made("sd3")), 20)
    assert (clip.room, both.room) == (6, 19)  # without begin and end, and without the end
    assert clip.lengths([long, "", "a cat"]) == both.lengths([long, "", "a cat"]) == [12, 0, 2]
    assert (clip.lengths([]), both.tokens, PipelineText(str(made("flux"))).tokens) == ([], 20, 512)
    same = " ".join(long.split()[:6])
    assert torch.equal(clip.encode([long])["text"], clip.encode([same])["text"])


def test_sizes_of_images(made: Make) -> None:
    sized = PipelineText(str(made("sdxl")))
    found = sized.sizes([(30, 40), (16, 16)], [(0, 2), (0, 0)], (16, 16))
    assert found["time_ids"].tolist() == [[30, 40, 0, 2, 16, 16], [16, 16, 0, 0, 16, 16]]
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == sized.size_conditions
    plain = PipelineText(str(made("sd1")))
    assert (plain.sizes([(30, 40)], [(0, 0)], (16, 16)), plain.size_conditions) == ({}, {})
    assert time_ids([], [], (1, 1)).shape == (0, 6)


def test_the_number_of_tokens_must_be_one(made: Make) -> None:
    for tokens, message in ((0, "tokens: found 0"), (513, "tokens: found 513, expected .*512")):
        with pytest.raises(UserError, match=message):
            PipelineText(str(made("flux")), tokens)
    with pytest.raises(UserError, match="found 9 tokens, expected none"):
        PipelineText(str(made("sd1")), 9)


def _put(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"_class_name": "StableVideoDiffusionPipeline"}, "found a pipeline of class 'StableVideoDiffusionPipeline'"),
        ({"_class_name": ["FluxPipeline"]}, "found a pipeline of class"),
        ({"_class_name": None}, "found a pipeline of class None"),
        ({"text_encoder_2": [None, None]}, r"text_encoder_2: found None, expected one of CLIPTextModel"),
        ({"text_encoder_2": ["transformers", "LlamaModel"]}, "text_encoder_2: found 'LlamaModel', expected one of"),
        ({"text_encoder_2": ["os", "system"]}, "text_encoder_2: found 'system', expected one of"),
        ({"tokenizer_2": ["transformers", "CLIPTextModel"]}, "tokenizer_2: found 'CLIPTextModel', expected one of"),
    ],
)
def test_pipelines_that_are_none_of_ours(made: Make, tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    shutil.copytree(made("sdxl"), tmp_path / "other")
    _put(tmp_path / "other", **entries)
    with pytest.raises(UserError, match=message) as refused:
        PipelineText(str(tmp_path / "other"))
    assert "\n" not in str(refused.value)


def test_an_index_that_is_none(made: Make, tmp_path: Path) -> None:
    shutil.copytree(made("sd1"), tmp_path / "other")
    (tmp_path / "other/model_index.json").write_text('"banana"')
    with pytest.raises(UserError, match=r"model_index\.json: found a str, expected a config"):
        PipelineText(str(tmp_path / "other"))


def test_missing_weights_are_not_drawn_at_random(made: Make, tmp_path: Path) -> None:
    shutil.copytree(made("sd3"), tmp_path / "other")
    path = tmp_path / "other/text_encoder_3/model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if name.endswith("SelfAttention.q.weight")))
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"text_encoder_3: found no weights .*SelfAttention\.q\.weight"):
        PipelineText(str(tmp_path / "other"))


def test_other_weights_of_any_encoder_are_refused(made: Make, tmp_path: Path) -> None:
    config = PipelineText(str(made("sd3")), 5).config()
    shutil.copytree(made("sd3"), tmp_path / "other")
    path = tmp_path / "other/text_encoder_2/model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(UserError, match="another model lies there now"):
        text_encoder({**config, "source": str(tmp_path / "other")}, None)


def test_a_store_reaches_out_for_nothing() -> None:
    config = {"class": "PipelineText", "source": "somebody/model", "tokens": None, "weights": "0" * 16}
    with pytest.raises(UserError, match="fetch it first: hf download somebody/model"):
        text_encoder(config, None)
