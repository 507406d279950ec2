import json
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_attr.encoders import (
    AutoencoderKLEncoder,
    CLIPText,
    image_encoder,
    text_encoder,
)
from lightning_attr.errors import UserError

AutoencoderKL: Any = import_module("diffusers").AutoencoderKL  # diffusers is not typed
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random autoencoder that halves the side once, saved to disk."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    folder = tmp_path_factory.mktemp("pipeline") / "vae"
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP text model and a tokenizer with a handful of merges, saved to disk."""
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    folder = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", *(c + end for c in "abcdeot" for end in ("", "</w>")), "ca", "cat</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    tokenizer.save_pretrained(folder)
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


def test_autoencoder_scales_as_its_config_says(vae_folder: Path, images: Tensor) -> None:
    encoder = AutoencoderKLEncoder(str(vae_folder))
    latents = encoder.encode(images)
    assert latents.shape == (24, *encoder.latent_shape(16)) == (24, 4, 8, 8)
    vae = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        mean = vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
        decoded = vae.decode(mean).sample
    assert torch.allclose(latents, (mean - 0.25) * 0.5, atol=1e-6)
    pixels = ((decoded + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    assert (encoder.decode(latents).float() - pixels).abs().max() <= 1
    assert encoder.decode(latents).dtype == torch.uint8


def test_autoencoder_is_rebuilt_from_its_config(vae_folder: Path, images: Tensor) -> None:
    encoder = AutoencoderKLEncoder(str(vae_folder))
    again = image_encoder(json.loads(json.dumps(encoder.config())), encoder.state())
    assert torch.equal(again.encode(images), encoder.encode(images))


def test_autoencoder_of_a_pipeline(vae_folder: Path) -> None:
    inside = AutoencoderKLEncoder(str(vae_folder.parent), pipeline=True)
    assert inside.config()["weights"] == AutoencoderKLEncoder(str(vae_folder)).config()["weights"]


def test_autoencoder_with_other_weights_is_refused(vae_folder: Path) -> None:
    config = {**AutoencoderKLEncoder(str(vae_folder)).config(), "weights": "0" * 16}
    with pytest.raises(UserError, match=r"digest [0-9a-f]{16}, expected 0{16}"):
        image_encoder(config, None)


def test_autoencoder_image_size(vae_folder: Path) -> None:
    with pytest.raises(UserError, match="15 is not a multiple of 2"):
        AutoencoderKLEncoder(str(vae_folder)).latent_shape(15)


def test_an_autoencoder_with_a_mean_of_each_channel_is_refused(vae_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(vae_folder, tmp_path / "vae")
    path = tmp_path / "vae/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}))
    with pytest.raises(UserError, match="found latents_mean, expected one scale and shift"):
        AutoencoderKLEncoder(str(tmp_path / "vae"))


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"AutoencoderKL {tmp_path}: expected a hub name or a local folder"):
        AutoencoderKLEncoder(str(tmp_path))


def test_clip_gives_the_last_hidden_state(clip_folder: Path) -> None:
    import transformers

    encoder = CLIPText(str(clip_folder))
    assert (encoder.tokens, encoder.dim) == (9, 16)
    states = encoder.encode(["a cat", "", "cat " * 20])["text"]
    assert states.shape == (3, 9, 16)
    assert states.dtype == torch.float32
    ids = torch.tensor([[0, *_ids(clip_folder, "a</w>", "cat</w>"), 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = transformers.CLIPTextModel.from_pretrained(clip_folder)(ids).last_hidden_state
    assert torch.allclose(states[:1], expected, atol=1e-5)


def _ids(folder: Path, *words: str) -> list[int]:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    return [vocabulary[word] for word in words]


def test_clip_is_rebuilt_from_its_config(clip_folder: Path) -> None:
    encoder = CLIPText(str(clip_folder))
    again = text_encoder(json.loads(json.dumps(encoder.config())), encoder.state())
    assert torch.equal(again.encode(["a cat"])["text"], encoder.encode(["a cat"])["text"])
    assert encoder.encode([])["text"].shape == (0, 9, 16)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The machines whose addresses were asked for; none answers."""
    hosts: list[object] = []

    def nobody(host: object, *_: object, **__: object) -> None:
        hosts.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts
    return hosts


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("name", ["AutoencoderKLEncoder", "CLIPText"])
def test_a_store_that_names_a_model_of_the_hub_does_not_reach_out(
    asked: list[object], name: str, pipeline: bool
) -> None:
    config = {"class": name, "source": "somebody/model", "pipeline": pipeline, "weights": "0" * 16}
    rebuild: Any = image_encoder if name == "AutoencoderKLEncoder" else text_encoder
    with pytest.raises(UserError, match=r"'somebody/model': found nothing .*fetch it first: hf download somebody/mo"):
        rebuild(config, None)
    with pytest.raises(UserError, match="found argument 'local'"):
        rebuild({**config, "local": False}, None)
    for source in ("", "../..", "a/b/c", "x" * 10_000, "http://127.0.0.1/model", "a\x00b"):
        with pytest.raises(UserError) as error:
            rebuild({**config, "source": source}, None)
        assert len(str(error.value)) < 500
    assert asked == []


def test_what_was_downloaded_before_is_found_without_the_network(
    asked: list[object], clip_folder: Path, vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--somebody--model" / "refs").mkdir(parents=True)
    (tmp_path / "models--somebody--model" / "refs" / "main").write_text("0" * 40)
    snapshot = tmp_path / "models--somebody--model" / "snapshots" / ("0" * 40)
    shutil.copytree(clip_folder, snapshot)
    shutil.copytree(vae_folder, snapshot / "vae")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(clip_folder, snapshot / part)
    for pipeline in (False, True):
        text: dict[str, Any] = {**CLIPText(str(clip_folder)).config(), "source": "somebody/model", "pipeline": pipeline}
        assert text_encoder(text, None).config() == text
    image = {**AutoencoderKLEncoder(str(vae_folder)).config(), "source": "somebody/model", "pipeline": True}
    assert image_encoder(image, None).config() == image
    assert asked == []


@pytest.mark.parametrize("kind", [AutoencoderKLEncoder, CLIPText])
def test_a_user_that_names_one_does(asked: list[object], kind: type) -> None:
    with pytest.raises(UserError, match="somebody/model: expected a hub name or a local folder"):
        kind("somebody/model")
    assert "huggingface.co" in asked


def test_of_a_text_what_the_encoder_sees_is_counted(clip_folder: Path) -> None:
    encoder = CLIPText(str(clip_folder))
    assert encoder.room == 7
    assert encoder.lengths(["a cat", "", "cat " * 20, "  "]) == [2, 0, 20, 0]
    assert encoder.lengths([]) == []


OTHERS = {
    "t5": ("T5Config", "T5EncoderModel", {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}),
    "roberta": ("RobertaConfig", "RobertaModel", {"num_hidden_layers": 1, "num_attention_heads": 2}),
    "siglip_text_model": ("SiglipTextConfig", "SiglipTextModel", {"num_hidden_layers": 1, "num_attention_heads": 2}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_text_models_that_are_no_clip_are_refused(clip_folder: Path, tmp_path: Path, kind: str) -> None:
    """Their weights have other names: those of a CLIP would be drawn at random."""
    import transformers

    config, model, sizes = OTHERS[kind]
    if kind != "t5":
        sizes = {**sizes, "hidden_size": 16, "intermediate_size": 16}
    folder = tmp_path / kind
    shutil.copytree(clip_folder, folder)
    getattr(transformers, model)(getattr(transformers, config)(vocab_size=40, **sizes)).save_pretrained(folder)
    with pytest.raises(UserError, match=f"found a model of type '{kind}', expected CLIP's"):
        CLIPText(str(folder))


def test_a_clip_that_lacks_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "q_proj.weight" in name)
    rest = {name: value for name, value in weights.items() if name != lost}
    save_file(rest, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"found no weights \S*q_proj\.weight, expected all"):
        CLIPText(str(folder))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "CLIPTextModel, text_encoder_2"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
    ],
)
def test_pipelines_with_other_text_conditions_are_refused(
    clip_folder: Path, tmp_path: Path, parts: dict[str, list[str]], words: str
) -> None:
    """As SDXL, SD3, FLUX and PixArt: one encoder's last layer is not what they were trained on."""
    shutil.copytree(clip_folder, tmp_path / "text_encoder")
    index = {"_class_name": "Pipeline", "text_encoder": ["transformers", "CLIPTextModel"], **parts}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"found a pipeline with {words}, expected one CLIPTextModel"):
        CLIPText(str(tmp_path), pipeline=True)


def test_clip_folder_without_a_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    with pytest.raises(UserError, match=f"CLIP text encoder {tmp_path}: expected a hub name or a local folder"):
        CLIPText(str(tmp_path))


@pytest.mark.slow
def test_missing_transformers_names_the_extra() -> None:
    program = """
import sys
from lightning_attr.errors import UserError
from lightning_attr.encoders import CLIPText
sys.modules["transformers"] = None  # from here on, its import fails
try:
    CLIPText("some/model")
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'lightning-attr[hf]'" in done.stdout
