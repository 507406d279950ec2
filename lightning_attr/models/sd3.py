"""Transformers of Stable Diffusion 3 and 3.5: text and image attend to each other in one attention.

Shapes: B samples, C x H x W a latent, L tokens of E features, P numbers of a pooled text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from datamodules.store import Schema
from lightning_attr.errors import UserError
from lightning_attr.models.denoiser import Conditions, check_sizes
from lightning_attr.models.objective import Objective
from lightning_attr.models.patches import PatchDenoiser
from lightning_attr.models.process import SHIFTS, FlowMatching

#: Of the layers in an attention, those that see the text: keys and values, or all.
TEXT_KEYS = r"\battn\.add_[kv]_proj\."
TEXT_LAYERS = r"\battn\.(add_[kqv]_proj|to_add_out)\."
ATTENTION = r"\battn2?\.(?!norm)"

#: Of all linear layers and convolutions: norms of queries and keys have weights as well.
MATRICES = r"^(?!.*\bnorm_(added_)?[qk]\.).*\.weight$"


def shifted(tokens: int, scheduler: Mapping[str, Any]) -> dict[str, float]:
    """Return by what a flow of so many tokens is shifted, where its scheduler has that depend on the size.

    It lies on a line between the two points that the scheduler names.
    """
    if not scheduler["use_dynamic_shifting"]:
        return {}
    few, many, low, high = (scheduler[name] for name in SHIFTS)
    slope = (high - low) / (many - few)
    return {"mu": tokens * slope + (low - slope * few)}


class SD3(PatchDenoiser):
    """An ``SD3Transformer2DModel``, given ``text`` [B, L, E] and ``pooled`` [B, P].

    Its attention has no keys and values that see the text alone, but the text's own: they are its ``cross_kv``, and all
    of the text's layers in an attention its ``cross_attention``.
    """

    class_name = "SD3Transformer2DModel"
    patterns = {  # noqa: RUF012 (declared a class variable by the base)
        "cross_kv": TEXT_KEYS,
        "cross_attention": TEXT_LAYERS,
        "attention": ATTENTION,
        "matrices": MATRICES,
        "all": r"",
    }
    pipelines = ("StableDiffusion3Pipeline",)
    process = FlowMatching
    usual = Objective(weighting="sigma_squared", timesteps="logit_normal")

    @classmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse transformers with other channels out than in.

        Raises:
            UserError: It is one, or its config names sizes that no network has.
        """
        names = ("in_channels", "patch_size", "num_attention_heads", "attention_head_dim", "pos_embed_max_size")
        check_sizes(key, config, (*names, "sample_size", "joint_attention_dim", "pooled_projection_dim"))
        check_sizes(key, config, ["num_layers"], 1000)
        channels = config.get("in_channels", 16), config.get("out_channels", 16)
        if channels[0] != channels[1]:
            raise UserError(f"{key}: found {channels[0]} channels in and {channels[1]} out, expected as many of both")

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Call the network."""
        prediction: Tensor = self.network(
            hidden_states=noisy,
            timestep=times,
            encoder_hidden_states=conditions["text"],
            pooled_projections=conditions["pooled"],
        ).sample
        return prediction

    @property
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shapes of the text states [L, E], of any number of tokens, and of the pooled text [P]."""
        return {
            "text": (None, int(self._config.joint_attention_dim)),
            "pooled": (int(self._config.pooled_projection_dim),),
        }

    @property
    def idle(self) -> tuple[str, ...]:
        """Return the last block's queries of the text: what the text becomes there is not used any more."""
        last = f"transformer_blocks.{self._config.num_layers - 1}.attn."
        return f"{last}add_q_proj", f"{last}norm_added_q"

    def accepts(self, schema: Schema, path: str) -> None:
        """Check also that the network has positions for all patches.

        Raises:
            UserError: It has not, or the samples do not fit it.
        """
        super().accepts(schema, path)
        most = int(self._config.pos_embed_max_size) * self.multiple
        if max(found := schema.fields["latent"].shape[2:]) > most:
            raise UserError(f"store {path}: found latents of {found[0]} x {found[1]}, expected at most {most} x {most}")

    def steps(self, count: int, size: Sequence[int], scheduler: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of steps, and how their shares of noise are shifted where that depends on the size."""
        tokens = (size[0] // self.multiple) * (size[1] // self.multiple)
        return {"num_inference_steps": count, **shifted(tokens, scheduler)}
