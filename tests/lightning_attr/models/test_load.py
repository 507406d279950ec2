"""Models: built from configs, read from checkpoints, their weights selected."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from miniature import DENOISER, Project
from safetensors.torch import load_file, save_file

from datamodules.store import Field, Schema, Store, StoreWriter
from lightning_attr.errors import UserError
from lightning_attr.models import Diffusion, build, load, load_weights
from lightning_attr.models.unet import UNet


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build(DENOISER, {}, 1).network.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second, other = (build(DENOISER, {}, seed).network.state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_classes_of_diffusers_by_name() -> None:
    assert Diffusion({"_class_name": "DDIMScheduler"}).name == "DDIMScheduler"
    with pytest.raises(UserError, match="NoScheduler"):
        Diffusion({"_class_name": "NoScheduler"})
    with pytest.raises(
        UserError, match=r"prediction_type: found 'score', expected one of epsilon, v_prediction, sample"
    ):
        Diffusion({"prediction_type": "score"})
    with pytest.raises(
        UserError, match=r"found a network of class 'CogView4Transformer2DModel', expected one of UNet2D"
    ):
        build({"_class_name": "CogView4Transformer2DModel"}, {})


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("cross_kv", {"attn2.to_k", "attn2.to_v"}),
        ("cross_attention", {"attn2.to_k", "attn2.to_v", "attn2.to_q", "attn2.to_out"}),
        (r"attn1\.to_q", {"attn1.to_q"}),
    ],
)
def test_selection(pattern: str, names: set[str]) -> None:
    selected = build(DENOISER, {}).select(pattern)
    assert {".".join(name.split("transformer_blocks.0.")[1].split(".")[:2]) for name in selected} == names


def test_all_selects_everything() -> None:
    network = build(DENOISER, {}, 0).network
    assert UNet(network).select("all").keys() == dict(network.named_parameters()).keys()


def test_a_checkpoint_gives_the_average_and_all_that_sampling_needs(project: Project) -> None:
    trained = load(project.checkpoint)
    checkpoint = torch.load(project.checkpoint, weights_only=True)
    for name, weight in trained.network.state_dict().items():
        assert torch.equal(weight, checkpoint["state_dict"][f"denoiser.{name}"])
    assert not trained.network.training
    assert trained.latent_shape == (4, 8, 8)
    assert trained.null["text"].shape == (6, 16)
    assert trained.configs["denoiser"] == DENOISER


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    network, other = build(DENOISER, {}, 0).network, build({**DENOISER, "block_out_channels": [12]}, {}, 0).network
    with pytest.raises(UserError, match=r"file\.ckpt: of another architecture: found conv_in.*expected"):
        load_weights(network, other.state_dict(), "file.ckpt")
    weights = network.state_dict()
    weights.pop("conv_in.bias")
    with pytest.raises(UserError, match=r"found conv_in\.bias missing, expected \(8,\)"):
        load_weights(network, weights, "file.ckpt")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a pipeline in miniature, without the text encoder, and with weights of one variant alone."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "model_index.json").write_text("{}")
    build(DENOISER, {}, 1).network.save_pretrained(folder / "unet", variant="fp16")  # type: ignore[operator]
    PNDMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder


def test_a_unet_folder_predicts_what_its_network_does(pipeline: Path) -> None:
    model, expected = load(pipeline / "unet"), build(DENOISER, {}, 1).network
    latent, text, at = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16), torch.tensor([3, 900])
    assert torch.equal(model.predict(latent, at, {"text": text}), expected(latent, at, text).sample)
    assert (model.latent_shape, model.process.levels) == ((4, 8, 8), 1000)
    scheduler, noise = PNDMScheduler.from_pretrained(pipeline / "scheduler"), torch.randn(2, 4, 8, 8)
    noisy, target = model.process.noised(latent, noise, at)
    torch.testing.assert_close(noisy, scheduler.add_noise(latent, noise, at))
    level = scheduler.alphas_cumprod[at].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(target, level.sqrt() * noise - (1 - level).sqrt() * latent)
    assert model.digest == load(pipeline / "unet", variant="fp16").digest
    with pytest.raises(UserError, match="found no null conditions, which guidance 3 needs"):
        model.generate({"text": text}, [1, 2], size=(8, 8), steps=2, guidance=3.0)


def test_what_is_no_folder_of_a_model(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file, expected the folder of a diffusers pipeline"):
        load(tmp_path)
    shutil.copytree(pipeline, tmp_path / "pipeline")
    unet = tmp_path / "pipeline/unet"
    weights = load_file(next(unet.glob("*.safetensors")))
    weights.pop("conv_in.bias")
    save_file(weights, next(unet.glob("*.safetensors")))
    with pytest.raises(UserError, match=r"unet: .*conv_in\.bias"):
        load(unet)
    (unet / "diffusion_pytorch_model.bf16.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="found variants bf16, fp16, expected variant to name one"):
        load(unet)
    config = json.loads((unet / "config.json").read_text())
    (unet / "config.json").write_text(json.dumps({**config, "_class_name": "CogView4Transformer2DModel"}))
    with pytest.raises(
        UserError, match="found a network of class 'CogView4Transformer2DModel', expected one of UNet2D"
    ):
        load(unet)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"addition_embed_type": "text_image"}, "found addition_embed_type 'text_image', expected none"),
        ({"in_channels": 9}, "found 9 channels in and 4 out"),  # inpainting
        ({"in_channels": 8}, "found 8 channels in and 4 out"),  # instructions
        ({"num_class_embeds": 1000}, "found num_class_embeds 1000, expected none"),  # upscaling
        ({"class_embed_type": "timestep"}, "found class_embed_type"),
        ({"encoder_hid_dim_type": "text_proj"}, "found encoder_hid_dim_type"),
        ({"time_cond_proj_dim": 256}, "found time_cond_proj_dim 256"),  # latent consistency
        ({"attention_type": "gated"}, "found attention_type 'gated'"),  # GLIGEN
    ],
)
def test_unets_that_are_called_otherwise(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({**DENOISER, **changed}, {})


def test_a_unet_of_another_schedule_is_another_model(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline, tmp_path / "pipeline")
    before = load(tmp_path / "pipeline/unet").digest
    assert before == load(pipeline / "unet").digest
    PNDMScheduler(prediction_type="epsilon").save_pretrained(tmp_path / "pipeline/scheduler")
    assert load(tmp_path / "pipeline/unet").digest != before


def test_a_store_without_a_condition(stores: Project, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.lmdb", Schema({"latent": Field((1, 4, 8, 8), "float32", "latent")}, {})) as writer:
        writer.finish()
    with pytest.raises(UserError, match=r"a\.lmdb: found latent, expected text among them"):
        build(DENOISER, {}).accepts(Store(tmp_path / "a.lmdb"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "expected one that noises by a schedule of betas"),
        ({"prediction_type": "flow_prediction"}, "prediction_type: found 'flow_prediction'"),
        ({"_class_name": "DiffusionPipeline"}, "found class 'DiffusionPipeline', expected a SchedulerMixin"),
        ({"_class_name": "CogVideoXDDIMScheduler"}, "found a schedule of CogVideoXDDIMScheduler that DDPM"),
    ],
)
def test_schedulers_of_another_process(
    pipeline: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    shutil.copytree(pipeline, tmp_path / "pipeline")
    path = tmp_path / "pipeline/scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path / "pipeline/unet")
    assert str(path) in str(refused.value)


def test_a_schedule_rescaled_to_end_in_noise_alone(pipeline: Path, tmp_path: Path) -> None:
    """It was dropped once without a word, and the last timesteps were those of another process."""
    shutil.copytree(pipeline, tmp_path / "pipeline")
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    scheduler.save_pretrained(tmp_path / "pipeline/scheduler")
    process = load(tmp_path / "pipeline/unet").process
    latent, noise, at = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([999])
    torch.testing.assert_close(process.noised(latent, noise, at)[0], noise)


def test_weights_in_several_files_of_one_variant(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline, tmp_path / "pipeline")
    unet = tmp_path / "pipeline/unet"
    next(unet.glob("*.safetensors")).unlink()
    build(DENOISER, {}, 1).network.save_pretrained(unet, variant="fp16", max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(unet.glob("*fp16-0*.safetensors"))) > 1
    found, expected = load(unet).network.state_dict(), load(pipeline / "unet").network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_pipelines_with_more_parts(pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline, tmp_path / "pipeline")
    parts = {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]}
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps({**parts, "image_encoder": [None, None]}))
    with pytest.raises(UserError, match="found a pipeline with controlnet, expected none but unet"):
        load(tmp_path / "pipeline")


@pytest.mark.parametrize("name", ["quantization_config", "auto_map"])
def test_networks_that_are_no_plain_ones(pipeline: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(pipeline, tmp_path / "pipeline")
    path = tmp_path / "pipeline/unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: {"quant_method": "bitsandbytes"}}))
    with pytest.raises(UserError, match=f"found {name}, expected a model without"):
        load(tmp_path / "pipeline/unet")


def test_any_size_that_the_network_halves(tmp_path: Path) -> None:
    """Not only the one that it was made for, and not only squares."""
    blocks = {name: DENOISER[name] * 2 for name in ("block_out_channels", "down_block_types", "up_block_types")}
    model = build({**DENOISER, **blocks}, {})
    for size, fits in (((8, 12), True), ((6, 2), True), ((8, 9), False)):
        fields = {
            "latent": Field((1, 4, *size), "float32", "latent"),
            "text": Field((1, 6, 16), "float32", "condition"),
        }
        path = tmp_path / f"{size[0]}-{size[1]}.lmdb"
        with StoreWriter(path, Schema(fields, {})) as writer:
            writer.finish()
        if fits:
            model.accepts(Store(path))
            latents, noise = model.generate({"text": torch.randn(1, 6, 16)}, [1], size=size, steps=2, guidance=1.0)
            assert latents.shape == noise.shape == (1, 4, *size)
        else:
            with pytest.raises(UserError, match="found latents of 8 x 9, expected multiples of 2"):
                model.accepts(Store(path))
