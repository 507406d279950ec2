"""Tiny random pipelines of every family, saved as diffusers saves its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

diffusers: Any = import_module("diffusers")
transformers: Any = import_module("transformers")

#: The families by the names that :func:`make_pipeline` knows.
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "pixart")

WORDS = ["a", "cat", "dog", "on", "the", "red", "blue", "mat", "house"]


def make_pipeline(family: str, folder: Path) -> Any:
    """Make a random pipeline of a family, the same one each time; save it to ``folder``, and return it.

    Latents are 8 x 8 and images 16 x 16. Prompts are made of :data:`WORDS`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FAMILIES.index(family))
        with tempfile.TemporaryDirectory() as scratch:
            pipeline = _MAKERS[family](Path(scratch))
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                _randomise(part.eval().requires_grad_(False))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def _randomise(module: torch.nn.Module) -> None:
    """Put numbers where a fresh network has zeros or ones: in biases, norms, and layers that begin as nothing."""
    for weight in module.parameters():
        if bool((weight == weight.flatten()[0]).all()):
            weight.add_(0.1 * torch.randn(weight.shape))


def _vae(channels: int = 4, **arguments: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=channels,
        sample_size=16,
        **arguments,
    )


def _clip_tokenizer(folder: Path, tokens: int = 8) -> Any:
    words = [f"{word}</w>" for word in WORDS]
    letters = sorted({letter for word in WORDS for letter in word})
    pairs, merges = [letter + end for letter in letters for end in ("", "</w>")], []
    for word in WORDS:  # grown letter by letter
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = ["".join(parts[:2])]
            pairs.append(parts[0])
    vocabulary = list(dict.fromkeys(["<|startoftext|>", "<|endoftext|>", *pairs, *words]))
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=tokens)


def _clip(tokenizer: Any, dim: int, projected: int | None = None) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projected or dim,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(config) if projected is None else transformers.CLIPTextModelWithProjection(config)


def _t5(dim: int) -> tuple[Any, Any]:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0), *((f"▁{word}", -1.0) for word in WORDS)]
    tokenizer = transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=8)
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=dim, d_ff=2 * dim, d_kv=4, num_layers=1, num_heads=2
    )
    return tokenizer, transformers.T5EncoderModel(config)


def _unet(**arguments: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "layers_per_block": 1,
            "block_out_channels": (4, 8),
            "norm_num_groups": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2,
            **arguments,
        }
    )


BETAS: Mapping[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd1(folder: Path) -> Any:
    tokenizer = _clip_tokenizer(folder)
    return diffusers.StableDiffusionPipeline(
        unet=_unet(cross_attention_dim=8),
        vae=_vae(scaling_factor=0.5),
        text_encoder=_clip(tokenizer, 8),
        tokenizer=tokenizer,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd2(folder: Path) -> Any:
    tokenizer = _clip_tokenizer(folder)
    return diffusers.StableDiffusionPipeline(
        unet=_unet(cross_attention_dim=8, attention_head_dim=(1, 2), use_linear_projection=True),
        vae=_vae(scaling_factor=0.5),
        text_encoder=_clip(tokenizer, 8),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(
            clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", **BETAS
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(folder: Path) -> Any:
    tokenizer = _clip_tokenizer(folder)
    network = _unet(
        cross_attention_dim=14,
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 6,
    )
    return diffusers.StableDiffusionXLPipeline(
        unet=network,
        vae=_vae(scaling_factor=0.5),
        text_encoder=_clip(tokenizer, 8),
        text_encoder_2=_clip(tokenizer, 6, projected=6),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler(
            interpolation_type="linear", timestep_spacing="leading", steps_offset=1, **BETAS
        ),
        add_watermarker=False,
    )


def _sd3(folder: Path) -> Any:
    clip_tokenizer, (tokenizer, t5) = _clip_tokenizer(folder), _t5(16)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=8,
        pooled_projection_dim=14,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=network,
        vae=_vae(scaling_factor=0.5, shift_factor=0.25, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(clip_tokenizer, 8, projected=8),
        text_encoder_2=_clip(clip_tokenizer, 6, projected=6),
        text_encoder_3=t5,
        tokenizer=clip_tokenizer,
        tokenizer_2=clip_tokenizer,
        tokenizer_3=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(folder: Path) -> Any:
    clip_tokenizer, (tokenizer, t5) = _clip_tokenizer(folder), _t5(12)
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
    )
    return diffusers.FluxPipeline(
        transformer=network,
        vae=_vae(scaling_factor=0.5, shift_factor=0.25, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(clip_tokenizer, 8),
        text_encoder_2=t5,
        tokenizer=clip_tokenizer,
        tokenizer_2=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=4,
            max_image_seq_len=64,
        ),
    )  # fmt: skip


def _pixart(folder: Path) -> Any:
    tokenizer, t5 = _t5(12)
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        cross_attention_dim=8,
        caption_channels=12,
        use_additional_conditions=False,
    )
    return diffusers.PixArtAlphaPipeline(
        transformer=network,
        vae=_vae(scaling_factor=0.5),
        text_encoder=t5,
        tokenizer=tokenizer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


_MAKERS: Mapping[str, Callable[[Path], Any]] = {
    "sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "pixart": _pixart,
}  # fmt: skip
