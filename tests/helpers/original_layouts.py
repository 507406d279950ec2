"""Tiny pipelines as single files, with the names and shapes that the models' first authors gave the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: What the layers of the tiny UNet are called, in order of what is tried first.
UNET = {
    r"^conv_in\.": "input_blocks.0.0.",
    r"^add_embedding\.linear_1": "label_emb.0.0",
    r"^add_embedding\.linear_2": "label_emb.0.2",
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^down_blocks\.0\.resnets\.0": "input_blocks.1.0",
    r"^down_blocks\.0\.downsamplers\.0\.conv": "input_blocks.2.0.op",
    r"^down_blocks\.1\.resnets\.0": "input_blocks.3.0",
    r"^down_blocks\.1\.attentions\.0": "input_blocks.3.1",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
    r"^up_blocks\.0\.resnets\.(\d)": r"output_blocks.\1.0",
    r"^up_blocks\.0\.attentions\.(\d)": r"output_blocks.\1.1",
    r"^up_blocks\.0\.upsamplers\.0\.conv": "output_blocks.1.2.conv",
    r"^up_blocks\.1\.resnets\.0": "output_blocks.2.0",
    r"^up_blocks\.1\.resnets\.1": "output_blocks.3.0",
}
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}

VAE = {
    r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)": r"encoder.down.\1.block.\2",
    r"^encoder\.down_blocks\.(\d)\.downsamplers\.0": r"encoder.down.\1.downsample",
    r"^decoder\.up_blocks\.0\.resnets\.(\d)": r"decoder.up.1.block.\1",
    r"^decoder\.up_blocks\.1\.resnets\.(\d)": r"decoder.up.0.block.\1",
    r"^decoder\.up_blocks\.0\.upsamplers\.0": "decoder.up.1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_([qkv])\.": r"mid.attn_1.\1.",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"conv_norm_out": "norm_out",
    r"conv_shortcut": "nin_shortcut",
}


def renamed(part: nn.Module, names: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """Return the weights of a part by other names."""
    result = {}
    for name, value in part.state_dict().items():
        new = name
        for pattern, replacement in names.items():
            new = re.sub(pattern, replacement, new)
        if names is UNET and ".resnets." in name:
            inner = name.split(".")[-2]
            new = new.replace(inner, RESNET[inner])
        if names is VAE and re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new):
            value = value[:, :, None, None]
        result[prefix + new] = value.contiguous()
    return result


def clip(part: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a text encoder as transformers had it when these files were made."""
    plain = {name.removeprefix("text_model."): value for name, value in part.state_dict().items()}
    inner = {name: "" if name.startswith("text_projection") else "text_model." for name in plain}
    return {f"{prefix}.{inner[name]}{name}": value for name, value in plain.items()}


OPEN_CLIP = {
    r"^embeddings\.token_embedding": "token_embedding",
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^final_layer_norm": "ln_final",
    r"^encoder\.layers": "transformer.resblocks",
    r"layer_norm": "ln_",
    r"self_attn": "attn",
    r"fc1": "c_fc",
    r"fc2": "c_proj",
}


def open_clip(part: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a text encoder as OpenCLIP has it: the three projections of attention are one."""
    plain = {name.removeprefix("text_model."): value for name, value in part.state_dict().items()}
    if (projection := plain.pop("text_projection.weight", None)) is not None:
        plain["text_projection"] = projection.T.contiguous()
    for name in [name for name in plain if ".q_proj." in name]:
        three = [plain.pop(name.replace("q_proj", each)) for each in ("q_proj", "k_proj", "v_proj")]
        plain[name.replace("q_proj.", "in_proj_")] = torch.cat(three)
    result = {}
    for name, value in plain.items():
        for pattern, replacement in OPEN_CLIP.items():
            name = re.sub(pattern, replacement, name)
        result[f"{prefix}.{name}"] = value
    return result


JOINT = {
    r"^pos_embed\.pos_embed": "pos_embed",
    r"^pos_embed\.proj": "x_embedder.proj",
    r"^time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"^time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"^time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
    r"^time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^proj_out": "final_layer.linear",
    r"^transformer_blocks": "joint_blocks",
    r"norm1_context\.linear": "context_block.adaLN_modulation.1",
    r"norm1\.linear": "x_block.adaLN_modulation.1",
    r"ff_context\.net\.0\.proj": "context_block.mlp.fc1",
    r"ff_context\.net\.2": "context_block.mlp.fc2",
    r"ff\.net\.0\.proj": "x_block.mlp.fc1",
    r"ff\.net\.2": "x_block.mlp.fc2",
    r"attn\.to_q": "x_block.attn.qkv",
    r"attn\.add_q_proj": "context_block.attn.qkv",
    r"attn\.to_out\.0": "x_block.attn.proj",
    r"attn\.to_add_out": "context_block.attn.proj",
    r"attn\.norm_q": "x_block.attn.ln_q",
    r"attn\.norm_k": "x_block.attn.ln_k",
    r"attn\.norm_added_q": "context_block.attn.ln_q",
    r"attn\.norm_added_k": "context_block.attn.ln_k",
}


def joint_blocks(part: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the network of Stable Diffusion 3; its last norms have shift and scale the other way round."""
    plain, last = dict(part.state_dict()), len(part.transformer_blocks) - 1  # type: ignore[arg-type]
    for name in list(plain):
        if name.startswith(("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")):
            plain[name] = torch.cat(plain[name].chunk(2)[::-1])
        for first, others in {"to_q": ("to_k", "to_v"), "add_q_proj": ("add_k_proj", "add_v_proj")}.items():
            if f".{first}." in name:
                plain[name] = torch.cat([plain[name], *(plain.pop(name.replace(first, other)) for other in others)])
    result = {}
    for name, value in plain.items():
        for pattern, replacement in JOINT.items():
            name = re.sub(pattern, replacement, name)
        result[prefix + name] = value
    return result


def sd1(made: Any) -> dict[str, Tensor]:
    """Return Stable Diffusion 1."""
    return _with_unet(made) | clip(made.text_encoder, "cond_stage_model.transformer")


def sd2(made: Any) -> dict[str, Tensor]:
    """Return Stable Diffusion 2."""
    return _with_unet(made) | open_clip(made.text_encoder, "cond_stage_model.model")


def sdxl(made: Any) -> dict[str, Tensor]:
    """Return Stable Diffusion XL."""
    first = clip(made.text_encoder, "conditioner.embedders.0.transformer")
    return _with_unet(made) | first | open_clip(made.text_encoder_2, "conditioner.embedders.1.model")


def sd3(made: Any) -> dict[str, Tensor]:
    """Return Stable Diffusion 3 with all of its text encoders."""
    t5 = {f"text_encoders.t5xxl.transformer.{name}": value for name, value in made.text_encoder_3.state_dict().items()}
    return {
        **joint_blocks(made.transformer, "model.diffusion_model."),
        **renamed(made.vae, VAE, "first_stage_model."),
        **clip(made.text_encoder, "text_encoders.clip_l.transformer"),
        **clip(made.text_encoder_2, "text_encoders.clip_g.transformer"),
        **{name: value.clone() for name, value in t5.items()},  # its embedding is there by two names
    }


def _with_unet(made: Any) -> dict[str, Tensor]:
    return renamed(made.unet, UNET, "model.diffusion_model.") | renamed(made.vae, VAE, "first_stage_model.")


LAYOUTS: Mapping[str, Callable[[Any], dict[str, Tensor]]] = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3}
