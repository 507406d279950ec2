"""Adapters over tiny pipelines: what they predict, their gradients, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_adapters import ALPHA, check_gradients, keys, lay_over, save_diffusers, save_kohya, save_peft, save_plain
from tiny_pipelines import make_pipeline
from torch import Tensor, nn

from lightning_attr.adapters import read_adapter
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.models import Inputs, load
from lightning_attr.models.spec import write_spec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CLASS = "UNet2DConditionModel"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A pipeline, the same with a LoRA over its UNet and text encoder, and that LoRA's keys."""
    root = tmp_path_factory.mktemp("sd1")
    pipeline = make_pipeline("sd1", root / "base")
    unet, text = copy.deepcopy(pipeline.unet), copy.deepcopy(pipeline.text_encoder)
    lay_over(unet)
    lay_over(text)
    return SimpleNamespace(root=root, pipeline=pipeline, unet=unet, text=text, keys=keys(unet=unet, text_encoder=text))


def spec(folder: Path, base: Path, adapter: Path | None, alpha: float | None = None) -> Path:
    write_spec(folder / "model.yaml", base, adapter, alpha)
    return folder / "model.yaml"


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(3, 4, 8, 8, generator=generator).to(dtype)
    return latent, torch.tensor([3, 500, 900]), torch.randn(3, 8, 8, generator=generator).to(dtype)


def formats(folder: Path, named: dict[str, Tensor]) -> dict[str, tuple[Path, float | None]]:
    return {
        "diffusers": (save_diffusers(folder / "diffusers", named), None),
        "alpha is lost": (save_plain(folder / "plain", named), ALPHA),
        "peft": (save_peft(folder / "peft", named), None),
        "kohya": (save_kohya(folder / "kohya.safetensors", named), None),
    }


def test_every_key_format_predicts_what_peft_does(sd1: SimpleNamespace, tmp_path: Path) -> None:
    latent, at, text = inputs()
    expected = sd1.unet(latent, at, text).sample
    assert not torch.allclose(expected, sd1.pipeline.unet(latent, at, text).sample, atol=1e-2)
    digests = set()
    for name, (adapter, alpha) in formats(tmp_path, sd1.keys).items():
        model = load(spec(tmp_path, sd1.root / "base", adapter, alpha))
        assert torch.equal(model.predict(latent, at, {"text": text}), expected), name
        assert len(model.select("adapter")) == sum(key.startswith("unet.") for key in sd1.keys)
        digests.add(model.digest)
    assert len(digests) == 4


def test_the_keys_of_diffusers_first_loras(sd1: SimpleNamespace, tmp_path: Path) -> None:
    own = {name: value for name, value in sd1.keys.items() if ".attn" in name and "text" not in name}
    before: dict[str, Tensor] = {}
    for name, value in own.items():
        layer, role = name.removesuffix(".weight").split(".lora_")
        block, _, place = layer.removesuffix(".0").rpartition(".")
        before[f"{block}.processor.{place}_lora.{'down' if role == 'A' else 'up'}.weight"] = value
    assert any("to_out_lora" in name for name in before)
    found, expected = (
        read_adapter(save_plain(tmp_path / name, named), CLASS, {}, ALPHA).loras["network"]
        for name, named in (("before", before), ("now", own))
    )
    assert found.keys() == expected.keys()
    for layer, low in found.items():
        assert torch.equal(low.down, expected[layer].down)
        assert torch.equal(low.up, expected[layer].up)


def test_an_unknown_alpha_is_said_once(
    sd1: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_plain(tmp_path / "plain", sd1.keys)
    model = load(spec(tmp_path, sd1.root / "base", adapter))
    read_adapter(adapter, CLASS, {})  # as the next stage of the same command does
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("found no alpha in it; it is taken to be the rank") == 1
    network = copy.deepcopy(sd1.unet)
    for module in network.modules():
        if hasattr(module, "scaling"):
            module.scaling["default"] = 1.0
    latent, at, text = inputs()
    assert torch.equal(model.predict(latent, at, {"text": text}), network(latent, at, text).sample)
    with pytest.raises(UserError, match="found an alpha of its own, expected none where alpha 4 is given"):
        read_adapter(save_diffusers(tmp_path / "known", sd1.keys), CLASS, {}, 4)


def test_patterns_of_alpha(sd1: SimpleNamespace, tmp_path: Path) -> None:
    named = {name: value for name, value in sd1.keys.items() if "text" not in name}
    other = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    adapter = save_peft(tmp_path / "rs", named, use_rslora=True, lora_dropout=0.5, alpha_pattern={other: 1.5})
    network = load(spec(tmp_path, sd1.root / "base", adapter)).network
    assert not any(isinstance(module, nn.Dropout) and module.p for module in network.modules())
    scaling = {
        name: module.scaling["default"] for name, module in network.named_modules() if hasattr(module, "scaling")
    }
    assert scaling.pop(other) == pytest.approx(1.5 / 3**0.5)
    assert list(scaling.values()) == pytest.approx([ALPHA / 3**0.5] * len(scaling))


def test_null_conditions_of_a_model_without_text_encoders(sd1: SimpleNamespace, tmp_path: Path) -> None:
    """It can be asked all else: a store may have been encoded with the adapter."""
    folder = save_diffusers(tmp_path / "lora", sd1.keys)
    write_spec(tmp_path / "model.yaml", sd1.root / "base" / "unet", folder)
    model = load(tmp_path / "model.yaml")
    with pytest.raises(
        UserError, match=r"model\.yaml: model: found .*unet, which is no pipeline .* name the pipeline's"
    ):
        _ = model.null["text"]


def test_text_encoders_get_their_part(sd1: SimpleNamespace, tmp_path: Path) -> None:
    tokens = torch.tensor([[0, 5, 9, 1]])
    digests = set()
    for name, (path, alpha) in formats(tmp_path, sd1.keys).items():
        adapter, encoder = read_adapter(path, CLASS, {}, alpha), copy.deepcopy(sd1.pipeline.text_encoder)
        adapter.into_text("text_encoder", encoder, sd1.pipeline.tokenizer)
        same = torch.equal(encoder(tokens)[0], sd1.text(tokens)[0])
        assert same is (name != "peft")  # which is of the network alone
        digests.add(adapter.text_digest)
    assert None in digests
    assert len(digests) == 2


TO_K = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lora_unet_x.lokr_w1": torch.ones(2, 2)}, "found LoKr"),
        ({"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, "found LoHa"),
        ({f"{TO_K}.lora_magnitude_vector": torch.ones(8)}, "found DoRA"),
        ({"unet.conv_in.ia3_l": torch.ones(2)}, "found IA3"),
        ({"unet.conv_in.oft_R": torch.ones(2, 2)}, "found OFT"),
        ({f"{TO_K}.lora_B.bias": torch.ones(8)}, "found a LoRA with biases"),
        ({f"{TO_K}.lora_B.weight": torch.ones(8, 2)}, r"found A of \(3, 8\) and B of \(8, 2\)"),
        ({f"{TO_K}.lora_A.weight": torch.ones(3, 9)}, "found a LoRA of 8 x 9, expected 8 x 8 .* another base"),
        ({f"{TO_K}.lora_A.weight": torch.full((3, 8), torch.nan)}, r"to_k is not finite"),
        ({"unet.nowhere.lora_A.weight": torch.ones(3, 8)}, "unet.nowhere: found no B"),
        (
            {"unet.nowhere.lora_A.weight": torch.ones(3, 8), "unet.nowhere.lora_B.weight": torch.ones(8, 3)},
            r"found 1 of 4\d layers missing of the network that it is of, such as nowhere",
        ),
        ({f"diffusion_model.x.lora_{role}.weight": torch.ones(3, 3) for role in "AB"}, "found diffusion_model.x"),
        ({"unet.conv_in.weight": torch.ones(3)}, "found 1 keys that are no LoRA, such as unet.conv_in.weight"),
    ],
)
def test_what_is_refused(changed: dict[str, Tensor], message: str, sd1: SimpleNamespace, tmp_path: Path) -> None:
    named = {name: value for name, value in sd1.keys.items() if "text" not in name}
    adapter = save_diffusers(tmp_path / "lora", {**named, **changed})
    with pytest.raises(UserError, match=message):
        load(spec(tmp_path, sd1.root / "base", adapter))


def test_settings_and_files_that_are_refused(sd1: SimpleNamespace, tmp_path: Path) -> None:
    for number, (changed, message) in enumerate(
        [
            ({"use_dora": True}, "found use_dora True"),
            ({"peft_type": "LOKR"}, "of type LOKR"),
            ({"bias": "all"}, "found bias 'all'"),
            ({"modules_to_save": ["conv_in"]}, "found modules_to_save"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            read_adapter(save_peft(tmp_path / f"{number}", sd1.keys, **changed), CLASS, {})  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found no safetensors file, expected one file of an adapter"):
        read_adapter(tmp_path / "empty", CLASS, {})
    with pytest.raises(UserError, match="no such file"):
        read_adapter(tmp_path / "none.safetensors", CLASS, {})
    none = {"unet.nowhere.lora_A.weight": torch.ones(3, 8), "unet.nowhere.lora_B.weight": torch.ones(8, 3)}
    with pytest.raises(UserError, match="found no layer of the network"):
        load(spec(tmp_path, sd1.root / "base", save_diffusers(tmp_path / "other", none)))


def test_custom_diffusion_and_its_words(sd1: SimpleNamespace, tmp_path: Path) -> None:
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

    unet = copy.deepcopy(sd1.pipeline.unet)
    torch.manual_seed(0)
    processors = {}
    for name in unet.attn_processors:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        trained = "attn2" in name
        processors[name] = CustomDiffusionAttnProcessor(trained, trained, layer.to_q.out_features, 8)
    unet.set_attn_processor(processors)
    folder = tmp_path / "custom"
    unet.save_attn_procs(folder, safe_serialization=False)  # entries that are empty
    (word, row) = "<new1>", torch.randn(8)
    torch.save({word: row}, folder / f"{word}.bin")
    model = load(spec(tmp_path, sd1.root / "base", folder))
    latent, at, text = inputs()
    torch.testing.assert_close(model.predict(latent, at, {"text": text}), unet(latent, at, text).sample)
    assert len(model.select("adapter")) == 5 * 4  # biases of the outputs as well
    assert set(model.select("cross_kv")) < set(model.select("adapter"))
    pickled = torch.load(folder / "pytorch_custom_diffusion_weights.bin", weights_only=True)
    (folder / "pytorch_custom_diffusion_weights.bin").unlink()
    weights = {name: value for name, value in pickled.items() if isinstance(value, Tensor)}
    save_file(weights, folder / "pytorch_custom_diffusion_weights.safetensors")
    again = load(spec(tmp_path, sd1.root / "base", folder))
    assert torch.equal(again.predict(latent, at, {"text": text}), model.predict(latent, at, {"text": text}))
    (folder / "pytorch_custom_diffusion_weights.safetensors").unlink()
    torch.save({"a": SimpleNamespace()}, folder / "pytorch_custom_diffusion_weights.bin")
    with pytest.raises(UserError, match="could run code"):
        load(spec(tmp_path, sd1.root / "base", folder))


@pytest.mark.parametrize("rows", [1, 2])
def test_textual_inversion(rows: int, sd1: SimpleNamespace, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    values = torch.randn(rows, 8)
    save_file({"<mine>": values if rows > 1 else values[0]}, tmp_path / "learned_embeds.safetensors")
    expected, own = (StableDiffusionPipeline.from_pretrained(sd1.root / "base") for _ in range(2))
    expected.load_textual_inversion(tmp_path / "learned_embeds.safetensors")
    adapter = read_adapter(tmp_path / "learned_embeds.safetensors", CLASS, {})
    assert adapter.text_digest is not None
    adapter.into_text("text_encoder", own.text_encoder, own.tokenizer)
    encoded = [each.encode_prompt("a <mine> cat", "cpu", 1, False)[0] for each in (expected, own)]
    assert torch.equal(*encoded)
    with pytest.raises(UserError, match="found the word '<mine>', expected one that the tokenizer does not know"):
        adapter.into_text("text_encoder", own.text_encoder, own.tokenizer)
    model = load(spec(tmp_path, sd1.root / "base", tmp_path / "learned_embeds.safetensors"))
    assert model.chosen(None) == "cross_kv"


def test_weights_are_selected_by_names_of_the_base(sd1: SimpleNamespace, tmp_path: Path) -> None:
    model, base = load(spec(tmp_path, sd1.root / "base", save_peft(tmp_path / "p", sd1.keys))), load(sd1.root / "base")
    for pattern in (*model.denoiser.patterns, r"attn2\.to_k\.weight$"):
        names = [name.replace(".base_layer", "") for name in model.select(pattern)]
        extra = [name for name in names if "lora_" in name]
        assert [name for name in names if name not in extra] == list(base.select(pattern))
        assert bool(extra) is (pattern == "all")
    assert (model.chosen(None), base.chosen(None)) == ("adapter", "cross_kv")
    with pytest.raises(UserError, match="weights: 'adapter' selects nothing"):
        base.select("adapter")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("pattern", ["adapter", "attention", "norm2|lora_B"])
def test_gradients_of_each_sample(
    pattern: str, dtype: torch.dtype, tolerance: float, sd1: SimpleNamespace, tmp_path: Path
) -> None:
    model = load(spec(tmp_path, sd1.root / "base", save_peft(tmp_path / "p", sd1.keys)))
    model.network.to(dtype)
    check_gradients(model, pattern, Inputs(*_batch(dtype)), tolerance)


def test_gradients_of_a_lora_that_is_zero(sd1: SimpleNamespace, tmp_path: Path) -> None:
    named = {name: value * (0 if "lora_B" in name else 1) for name, value in sd1.keys.items()}
    model = load(spec(tmp_path, sd1.root / "base", save_peft(tmp_path / "p", named)))
    model.network.double()
    gradients = check_gradients(model, "adapter", Inputs(*_batch(torch.float64)), 1e-10)
    assert all(bool(value.any()) is ("lora_B" in name) for name, value in gradients.items())


def _batch(dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    latent, at, text = inputs(dtype)
    return latent, {"text": text}, at, torch.randn(latent.shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_a_spec_tells_what_it_is_of(sd1: SimpleNamespace, tmp_path: Path) -> None:
    adapter = save_peft(tmp_path / "p", sd1.keys)
    path = spec(tmp_path, sd1.root / "base", adapter)
    digest = file_digest(path)
    assert load(path).digest == digest
    (tmp_path / "elsewhere").mkdir()
    moved = spec(tmp_path / "elsewhere", sd1.root / "base", adapter)
    assert file_digest(moved) == digest
    assert moved.read_text() != path.read_text()
    assert file_digest(spec(tmp_path / "elsewhere", sd1.root / "base", None)) != digest
    without = "\n".join(line for line in path.read_text().splitlines() if "digests" not in line and line[0] != " ")
    path.write_text(without)
    with pytest.raises(
        UserError, match=r"model\.yaml: found no digests, expected the line digests: \{model: \w+, adap"
    ) as told:
        load(path)
    path.write_text(f"{without}\n{str(told.value).partition('the line ')[2]}\n")
    assert load(path).digest == digest
    save_file({"a": torch.ones(1)}, adapter / "more.safetensors")
    with pytest.raises(UserError, match=r"digests\.adapter: found \w+, expected \w+ as "):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not YAML"),
        ("adapter: x", "found no model in it"),
        ("model: x\nweight: 1", "found 'weight', expected model, adapter"),
        ("model: 3", "model: found 3, expected str"),
        ("model: x\nalpha: -1", "alpha: found -1, expected a positive number"),
        ("model: x", "found no .*x, expected what the spec names"),
    ],
)
def test_files_that_are_no_spec(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "model.yaml")
