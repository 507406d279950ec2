"""A LoRA over every family: what it predicts, and its gradients; and text encoders with their part of it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import check_gradients, keys, lay_over, save_diffusers, save_kohya, save_peft, save_plain
from tiny_pipelines import FAMILIES, make_pipeline
from torch import Tensor

from lightning_attr.adapters import read_adapter
from lightning_attr.encoders import PipelineText
from lightning_attr.encoders.registry import text_encoder
from lightning_attr.errors import UserError
from lightning_attr.models import Inputs, Model, load
from lightning_attr.models.finetune import Base, Trained, begun, export, of_base, restored
from lightning_attr.models.spec import write_spec


class Case:
    """A family's pipeline, its network with a LoRA, and the keys of that."""

    def __init__(self, family: str, root: Path) -> None:
        self.family, self.root, self.folder = family, root, root / "base"
        self.pipeline = make_pipeline(family, self.folder)
        self.part = "unet" if hasattr(self.pipeline, "unet") else "transformer"
        self.network = deepcopy(getattr(self.pipeline, self.part))
        lay_over(self.network)
        self.keys = keys(**{self.part: self.network})

    def model(self, adapter: Path) -> Model:
        write_spec(self.root / "model.yaml", self.folder, adapter)
        return load(self.root / "model.yaml")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def batch(model: Model, dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 3, model.latent_shape[0], 8, 8, generator=generator).to(dtype)

    def condition(name: str, shape: tuple[int | None, ...]) -> Tensor:
        if name == "mask":
            return (torch.arange(8) < torch.tensor([[8], [5], [2]])).to(dtype)
        return torch.randn(3, *(8 if size is None else size for size in shape), generator=generator).to(dtype)

    conditions = {name: condition(name, shape) for name, shape in model.denoiser.conditions.items()}
    return Inputs(latent, conditions, torch.tensor([10, 500, 950]), noise)


@torch.no_grad()
def test_it_predicts_what_the_pipelines_network_does(case: Case, tmp_path: Path) -> None:
    folder = save_diffusers(tmp_path / "lora", case.keys)
    model, base = case.model(folder), load(case.folder)
    inputs = batch(model)
    expected = model.over(case.network).losses(*inputs)
    assert torch.equal(model.losses(*inputs), expected)
    if hasattr(case.pipeline, "load_lora_weights"):
        pipeline = deepcopy(case.pipeline)
        pipeline.load_lora_weights(folder)
        torch.testing.assert_close(model.over(getattr(pipeline, case.part)).losses(*inputs), expected)
    assert not torch.allclose(expected, base.losses(*inputs), rtol=1e-3)
    assert torch.equal(case.model(save_peft(tmp_path / "peft", case.keys)).losses(*inputs), expected)
    assert len(model.select(None)) == len(case.keys)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("pattern", ["adapter", "cross_attention"])
def test_gradients_of_samples_are_autograds(
    case: Case, pattern: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    model = case.model(save_diffusers(tmp_path / "lora", case.keys))
    model.network.to(dtype)
    check_gradients(model, pattern, batch(model, dtype), tolerance)


@torch.no_grad()
def test_a_fine_tuning_begins_as_the_base_and_its_lora_comes_back(case: Case, tmp_path: Path) -> None:
    settings, base = Trained(rank=2, alpha=3.0), load(case.folder)
    model = begun(Base(str(case.folder), settings), load, seed=1)
    inputs = batch(model)
    torch.testing.assert_close(model.losses(*inputs), base.losses(*inputs), rtol=1e-6, atol=0)
    trained = {name: weight for name, weight in model.network.named_parameters() if weight.requires_grad}
    assert trained.keys() == model.select(None).keys()
    assert all("lora_" in name for name in trained)
    torch.manual_seed(0)
    for name, weight in trained.items():
        weight += 0.3 * torch.randn_like(weight) * ("lora_B" in name)
    expected = model.losses(*inputs)
    assert not torch.allclose(expected, base.losses(*inputs), rtol=1e-3)
    export(tmp_path, settings, model.network, trained)
    assert torch.equal(case.model(tmp_path).losses(*inputs), expected)
    record = of_base(Base(str(case.folder), settings), base)
    assert torch.equal(restored(record, trained, base).losses(*inputs), expected)
    if hasattr(case.pipeline, "load_lora_weights"):
        pipeline = deepcopy(case.pipeline)
        pipeline.load_lora_weights(tmp_path)
        torch.testing.assert_close(model.over(getattr(pipeline, case.part)).losses(*inputs), expected)


PROMPTS = ["a cat on the mat", "red dog"]


def with_texts(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """The pipeline with a LoRA over its CLIP encoders, and the keys of all."""
    pipeline, parts = deepcopy(case.pipeline), {}
    for part, encoder in pipeline.components.items():
        if part.startswith("text_encoder") and "CLIP" in type(encoder).__name__:
            lay_over(encoder)
            parts[part] = encoder
    return pipeline, {**case.keys, **keys(**parts)}


def test_text_encoders_have_their_part(case: Case, tmp_path: Path) -> None:
    pipeline, named = with_texts(case)
    folder, tokens = save_diffusers(tmp_path / "lora", named), None if case.family[:3] in ("sd1", "sd2", "sdx") else 8
    base, own = PipelineText(str(case.folder), tokens), PipelineText(str(case.folder), tokens, adapter=str(folder))
    if named == case.keys:
        assert own.config() == base.config()
        return
    assert own.weights != base.weights
    expected = PipelineText(str(case.folder), tokens)
    for part in own._encoders:
        setattr(expected._pipeline, part, getattr(pipeline, part))
    found, plain = own.encode(PROMPTS), base.encode(PROMPTS)
    for name, value in expected.encode(PROMPTS).items():
        assert torch.equal(found[name], value)
    assert any(not torch.allclose(found[name], plain[name], rtol=1e-2) for name in plain)
    again = text_encoder(own.config(), None)
    assert all(torch.equal(value, found[name]) for name, value in again.encode(PROMPTS).items())
    with pytest.raises(UserError, match=r"found digest \w+ of what it has for text encoders, expected 0"):
        PipelineText(str(case.folder), tokens, adapter=str(folder), adapter_digest="0")
    if tokens is None:  # else its own has other tokens
        model = case.model(folder)
        assert model.text_adapter == own.adapter_digest
        assert all(torch.equal(model.null[name], value) for name, value in own.null().items())


def test_kohyas_keys_of_sdxl(case: Case, tmp_path: Path) -> None:
    if case.family != "sdxl":
        return
    _, named = with_texts(case)
    file = save_kohya(tmp_path / "kohya.safetensors", named, "lora_te1")
    inputs = batch(load(case.folder))
    other = save_diffusers(tmp_path / "lora", named)
    assert torch.equal(case.model(file).losses(*inputs), case.model(other).losses(*inputs))
    config = load(case.folder).configs["denoiser"]
    digests = {read_adapter(path, config["_class_name"], config).text_digest for path in (file, other)}
    assert len(digests) == 1
    assert None not in digests


def test_what_is_for_a_text_encoder_that_is_not_there(case: Case, tmp_path: Path) -> None:
    extra = {f"text_encoder_4.x.lora_{role}.weight": torch.ones(3, 3) for role in "AB"}
    folder = save_plain(tmp_path / "lora", {**case.keys, **extra})
    with pytest.raises(UserError, match="found something for text_encoder_4, which the pipeline has not"):
        PipelineText(str(case.folder), adapter=str(folder))


def test_a_lora_of_another_family(case: Case, tmp_path: Path) -> None:
    others = [family for family in FAMILIES if family != case.family]
    folder = save_diffusers(tmp_path / "lora", case.keys)
    make_pipeline(others[(FAMILIES.index(case.family) + 1) % len(others)], tmp_path / "other")
    write_spec(tmp_path / "model.yaml", tmp_path / "other", folder)
    with pytest.raises(UserError, match=r"adapter .*lora: found|adapter .*safetensors"):
        load(tmp_path / "model.yaml")
