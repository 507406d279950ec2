"""Real encoders: any ``AutoencoderKL`` of diffusers, any CLIP text encoder and any vision transformer of transformers.

They are loaded by hub name or from a local folder, and only from safetensors files, which cannot run code.
Their weights stay outside the store; a digest of the weights in ``config()`` tells when others lie under the same name.

Shapes: B images or texts, H x W pixels, C x h x w a latent, F features.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from lightning_attr.artifacts import read_config
from lightning_attr.encoders.files import check_missing, checked_digest, here, loading_of, transformers_of
from lightning_attr.errors import UserError, one_line
from lightning_attr.weight_files import check_config, check_finite, check_weights, variant_of


class AutoencoderKLEncoder:
    """The variational autoencoder of a latent diffusion model; an image's latent is the mean of its posterior.

    Args:
        source: Hub name or local folder.
        pipeline: Whether ``source`` is a whole diffusers pipeline, whose folder ``vae`` is meant.
        weights: Expected digest of the weights; None takes what is found.
        local: Whether to look for it on this machine only, and never ask the hub.
    """

    def __init__(self, source: str, pipeline: bool = False, weights: str | None = None, local: bool = False) -> None:
        # Both libraries are imported when needed: they are slow to load, and most runs do without them.
        autoencoder: Any = import_module("diffusers").AutoencoderKL
        import_module("diffusers.utils.logging").set_verbosity_error()  # it lists all weights that do not fit
        self.source, self.pipeline = source, pipeline
        part = "vae" if pipeline else ""
        with loading_of("AutoencoderKL", source):
            place = here("AutoencoderKL", source, part) if local else source
            self._vae, loading = autoencoder.from_pretrained(
                place, subfolder=part or None, use_safetensors=True, output_loading_info=True,
                variant=variant_of(Path(place, part), "diffusion_pytorch_model"), torch_dtype=torch.float32,
            )  # fmt: skip
        check_weights(f"AutoencoderKL {source}", self._vae, loading)
        if self._vae.config.get("latents_mean") or self._vae.config.get("latents_std"):
            raise UserError(f"AutoencoderKL {source}: found latents_mean, expected one scale and shift of all channels")
        self._vae.requires_grad_(False).eval()
        self.weights = checked_digest(self._vae, source, weights)
        # x' = (x - shift) * scale has unit deviation or so; both numbers come with the model.
        self.scale = float(self._vae.config.scaling_factor)
        self.shift = float(self._vae.config.get("shift_factor") or 0.0)

    def config(self) -> dict[str, Any]:
        """Return the class and its arguments, weights digest included."""
        return {
            "class": "AutoencoderKLEncoder",
            "source": self.source,
            "pipeline": self.pipeline,
            "weights": self.weights,
        }

    def state(self) -> bytes | None:
        """Return None: the weights are found under ``source``."""
        return None

    def to(self, device: torch.device | str, /) -> Self:
        """Move the autoencoder to ``device``."""
        self._vae.to(device)
        return self

    @property
    def channels(self) -> int:
        """Return the channels of a latent."""
        return int(self._vae.config.latent_channels)

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return (latent channels, h, w); every level but the last halves the side."""
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        if image_size % factor:
            raise UserError(f"{self.source}: image size {image_size} is not a multiple of {factor}")
        return self.channels, image_size // factor, image_size // factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 images [B, H, W, 3] to float32 latents [B, C, h, w], scaled as the model's own pipeline does."""
        pixels = images.to(self._vae.device).permute(0, 3, 1, 2) / 127.5 - 1.0
        latents: Tensor = self._vae.encode(pixels).latent_dist.mode()
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to uint8 images [B, H, W, 3]."""
        latents = latents.to(self._vae.device).float() / self.scale + self.shift
        pixels: Tensor = self._vae.decode(latents).sample
        pixels = ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()


class CLIPText:
    """A CLIP text encoder: the last hidden state, after the final layer norm, of the padded text.

    Pad tokens are not masked, as in Stable Diffusion.

    Args:
        source: Hub name or local folder that holds the text model and its tokenizer.
        pipeline: Whether ``source`` is a whole diffusers pipeline, whose ``text_encoder`` and ``tokenizer`` are meant.
        weights: Expected digest of the weights; None takes what is found.
        local: Whether to look for it on this machine only, and never ask the hub.

    Raises:
        UserError: Transformers is not installed.
    """

    def __init__(self, source: str, pipeline: bool = False, weights: str | None = None, local: bool = False) -> None:
        transformers = transformers_of("text encoder", source)
        self.source, self.pipeline = source, pipeline
        model_folder, tokenizer_folder = ("text_encoder", "tokenizer") if pipeline else ("", "")
        what = f"CLIP text encoder {source}"
        with loading_of("CLIP text encoder", source):
            place = here("CLIP text encoder", source, model_folder) if local else source
            _check_text_pipeline(Path(place), what)
            found = transformers.AutoConfig.from_pretrained(
                place, subfolder=model_folder, trust_remote_code=False
            ).model_type
            if found not in ("clip", "clip_text_model"):
                raise UserError(f"{what}: found a model of type {found!r}, expected CLIP's")
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, subfolder=tokenizer_folder, trust_remote_code=False
            )
            self._model, loading = transformers.CLIPTextModel.from_pretrained(
                place, subfolder=model_folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True,
                variant=variant_of(Path(place, model_folder), "model"),
            )  # fmt: skip
        check_missing(what, loading["missing_keys"])
        self._model.requires_grad_(False).eval()
        self.weights = checked_digest(self._model, source, weights)
        with loading_of("CLIP text encoder", source):
            self.encode([""])  # some configs fit the weights, and nothing else

    @property
    def tokens(self) -> int:
        """Return the tokens of an encoded text: all that the model has positions for."""
        return int(self._model.config.max_position_embeddings)

    @property
    def dim(self) -> int:
        """Return the width of a token's state."""
        return int(self._model.config.hidden_size)

    def config(self) -> dict[str, Any]:
        """Return the class and its arguments, weights digest included."""
        return {"class": "CLIPText", "source": self.source, "pipeline": self.pipeline, "weights": self.weights}

    def state(self) -> bytes | None:
        """Return None: the weights are found under ``source``."""
        return None

    def to(self, device: torch.device | str, /) -> Self:
        """Move the text model to ``device``."""
        self._model.to(device)
        return self

    @property
    def conditions(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the text states."""
        return {"text": (self.tokens, self.dim)}

    @property
    def room(self) -> int:
        """Return how many tokens of a text are encoded: all but begin and end."""
        return self.tokens - 2

    def lengths(self, texts: list[str]) -> list[int]:
        """Return how many tokens each text has that are in the vocabulary."""
        if not texts:
            return []
        found = self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        unknown = self._tokenizer.unk_token_id
        return [sum(token != unknown for token in tokens) for tokens in found]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Encode texts to float32 states, ``text`` [B, tokens, dim]."""
        if not texts:
            return {"text": torch.empty(0, self.tokens, self.dim, device=self._model.device)}
        batch = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        return {"text": self._model(batch.input_ids.to(self._model.device)).last_hidden_state}

    def null(self) -> dict[str, Tensor]:
        """Return the conditions of the empty text, without the batch axis."""
        return {name: value[0] for name, value in self.encode([""]).items()}


class VisionFeatures:
    """Image features of DINO, DINOv2, CLIP, ResNet or the like: one vector that tells what an image shows.

    Of models that pair images with texts it is the image's embedding in the space that both share, of others the last
    state of the class token, and of those without one, such as ResNet, what they pool. Images are resized, cropped and
    standardised as the model's own preprocessing says, by Pillow on every machine: other resizing would give other
    features.

    Args:
        source: Hub name or local folder that holds the model and its preprocessing.

    Raises:
        UserError: Transformers is not installed, or the model cannot be loaded or lacks weights.
    """

    def __init__(self, source: str) -> None:
        transformers = transformers_of("vision model", source)
        self.source = source
        with loading_of("vision model", source):
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            check_config(f"vision model {source}", config.to_dict())
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(
                source, backend="pil", trust_remote_code=False
            )
            self._model, loading = transformers.AutoModel.from_pretrained(
                source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, trust_remote_code=False,
                variant=variant_of(Path(source), "model"),
            )  # fmt: skip
        # DINO's files lack the pooler, which is not used here.
        missing = [name for name in loading["missing_keys"] if not name.startswith("pooler.")]
        check_missing(f"vision model {source}", missing)
        check_finite(f"vision model {source}", self._model)
        if loading["missing_keys"]:
            self._model.pooler = None
        if self._model.main_input_name != "pixel_values" and not hasattr(self._model, "get_image_features"):
            raise UserError(f"vision model {source}: found {type(self._model).__name__}, expected a model of images")
        self._model.requires_grad_(False).eval()
        tokens = ("cls_token", "class_token", "class_embedding")
        self._has_class_token = any(name.endswith(tokens) for name, _ in self._model.named_parameters())
        self.weights = checked_digest(self._model, source, None)
        self._check_features()

    def _check_features(self) -> None:
        """Look at one picture twice: some models hide random parts of it, and some give no features of one.

        Raises:
            UserError: It is such a model.
        """
        picture = Image.frombytes("RGB", (64, 64), bytes(place % 251 for place in range(64 * 64 * 3)))
        what = f"vision model {self.source}: {type(self._model).__name__}"
        with torch.random.fork_rng(devices=[]):
            try:
                first, second = self.encode([picture]), self.encode([picture])
            except Exception as error:  # what a model makes of inputs that are not its own has no type
                raise UserError(f"{what}: found no features of a picture: {one_line(error)}") from error
        if first.shape != second.shape or first.ndim != 2 or not torch.equal(first, second):
            raise UserError(f"{what}: found other features at a second look, expected a function of the picture alone")

    def to(self, device: torch.device | str, /) -> Self:
        """Move the model to ``device``."""
        self._model.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode RGB images to float32 features [B, F]."""
        pixels = self._processor(images=list(images), return_tensors="pt").pixel_values.to(self._model.device)
        if not hasattr(self._model, "get_image_features"):
            output = self._model(pixel_values=pixels)
            states: Tensor = output.last_hidden_state
            if self._has_class_token:
                return states[:, 0]
            if (pooled := output.get("pooler_output")) is not None:
                return pooled.flatten(1)  # type: ignore[no-any-return]
            return states.mean((2, 3) if states.ndim == 4 else 1)  # [B, F, H, W] of convolutions, or [B, L, F]
        features: Any = self._model.get_image_features(pixel_values=pixels)
        embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output  # since transformers 5
        return embedding


def _check_text_pipeline(folder: Path, what: str) -> None:
    """Refuse a folder of a pipeline whose text conditions are not the states of one CLIP alone."""
    index = folder / "model_index.json"
    if not index.is_file():
        return
    parts = {name: part[1] for name, part in read_config(index).items() if isinstance(part, list) and len(part) == 2}
    others = sorted(name for name in parts if name.startswith("text_encoder_") and parts[name])
    if others or parts.get("text_encoder", "CLIPTextModel") != "CLIPTextModel":
        found = ", ".join([str(parts.get("text_encoder")), *others])
        raise UserError(f"{what}: found a pipeline with {found}, expected one CLIPTextModel as its only text encoder")
