"""Conditions of texts as a pipeline of diffusers makes them: by all of its text encoders, and its own way to call them.

Shapes: B texts or images, L tokens of E features, P numbers of a pooled text.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_attr.adapters import read_adapter
from lightning_attr.artifacts import read_config
from lightning_attr.encoders.files import check_missing, checked_digest, here, loading_of, transformers_of
from lightning_attr.errors import UserError, expect_within, quoted
from lightning_attr.weight_files import check_config, check_finite, variant_of

#: What each pipeline's ``encode_prompt`` returns, in order; "" is nothing that the network needs of a text.
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("text", "null_text"),
    "StableDiffusionXLPipeline": ("text", "null_text", "pooled", "null_pooled"),
    "StableDiffusion3Pipeline": ("text", "null_text", "pooled", "null_pooled"),
    "FluxPipeline": ("text", "pooled", ""),
    "PixArtAlphaPipeline": ("text", "mask", "null_text", "null_mask"),
    "PixArtSigmaPipeline": ("text", "mask", "null_text", "null_mask"),
}

#: The pipelines whose networks are told the sizes of an image, see :func:`time_ids`.
SIZED = ("StableDiffusionXLPipeline",)

#: The classes of transformers that a pipeline's text encoders and tokenizers may be of.
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")

#: Most tokens that any of the pipelines takes of a T5.
MOST_TOKENS = 512


def time_ids(originals: Sequence[Sequence[int]], crops: Sequence[Sequence[int]], size: Sequence[int]) -> Tensor:
    """Return what Stable Diffusion XL is told of images, float32 [B, 6]: three pairs of pixels, height before width.

    Args:
        originals: Height and width of each image before it was resized.
        crops: The upper and left edge of each image's crop.
        size: Height and width after.
    """
    rows = [[*original, *crop, *size] for original, crop in zip(originals, crops, strict=True)]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


class PipelineText:
    """The text encoders of a pipeline of diffusers, called by its own ``encode_prompt``.

    Args:
        source: Local folder of a pipeline, or the hub name of one that lies in the hub's cache.
        tokens: How many tokens of a text its T5 gets; None is the pipeline's usual number. Pipelines without a T5 have
            no choice.
        weights: Expected digest of the weights of all text encoders, adapter included; None takes what is found.
        adapter: A LoRA or new words that are laid over the text encoders; one that has none for them is left out.
        alpha: Of a LoRA whose file lost it.
        adapter_digest: Expected digest of the adapter's part of the text encoders; None takes what is found.

    Raises:
        UserError: Transformers is not installed, the pipeline is none that we know, lacks a text encoder or weights,
            or the adapter is of another one.
    """

    def __init__(
        self,
        source: str,
        tokens: int | None = None,
        weights: str | None = None,
        adapter: str | None = None,
        alpha: float | None = None,
        adapter_digest: str | None = None,
    ) -> None:
        what = f"text encoders of {source}"
        self.source = source
        folder = Path(here("PipelineText", source, "text_encoder"))
        index = read_config(folder / "model_index.json")
        name = index.get("_class_name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise UserError(f"{what}: found a pipeline of class {quoted(name)}, expected one of {', '.join(OUTPUTS)}")
        self._outputs, self._sized = OUTPUTS[name], name in SIZED
        transformers_of("text encoders", source)
        cls: Any = getattr(import_module("diffusers"), name)
        parts = {part: cls for part, cls in index.items() if part.startswith(("text_encoder", "tokenizer"))}
        with loading_of("PipelineText", source):
            loaded = {part: _load(folder, part, cls) for part, cls in parts.items()}
            arguments = dict.fromkeys(signature(cls.__init__).parameters)
            del arguments["self"]
            plain = {key: value for key, value in index.items() if key in arguments and not isinstance(value, list)}
            if "requires_safety_checker" in arguments:
                plain["requires_safety_checker"] = False
            self._pipeline = cls(**{**arguments, **plain, **loaded})
        self.adapter, self.alpha, self.adapter_digest = None, None, None
        if adapter is not None:
            over = read_adapter(adapter, *_network(folder), alpha)
            if over.text_digest is not None:
                over.into_texts(loaded)
                self.adapter, self.alpha, self.adapter_digest = adapter, alpha, over.text_digest
        if adapter_digest not in (None, self.adapter_digest):
            raise UserError(
                f"adapter {adapter}: found digest {self.adapter_digest} of what it has for text encoders, expected "
                f"{adapter_digest}: another one lies there now"
            )
        logging.getLogger(cls.__module__).setLevel(logging.ERROR)  # it warns of every text that is cut
        encoders = {part: model for part, model in loaded.items() if isinstance(model, nn.Module)}
        self._encoders = nn.ModuleDict(encoders).requires_grad_(False).eval()
        self._takes = signature(self._pipeline.encode_prompt).parameters
        self.tokens = self._tokens(what, tokens)
        self.weights = checked_digest(self._encoders, source, weights)
        with loading_of("PipelineText", source):
            self._shapes = {key: tuple(value.shape[1:]) for key, value in self._encoded([""], False).items()}

    def _tokens(self, what: str, asked: int | None) -> int | None:
        usual = self._takes.get("max_sequence_length")
        if asked is None or usual is None:
            if asked is not None:
                raise UserError(f"{what}: found {asked} tokens, expected none: its encoders have a fixed number")
            return None if usual is None else int(usual.default)
        expect_within("tokens", asked, 1, MOST_TOKENS)
        return asked

    def config(self) -> dict[str, Any]:
        """Return the class and its arguments, weights digest included."""
        config = {"class": "PipelineText", "source": self.source, "tokens": self.tokens, "weights": self.weights}
        over = {"adapter": self.adapter, "alpha": self.alpha, "adapter_digest": self.adapter_digest}
        return config if self.adapter is None else {**config, **over}

    def state(self) -> bytes | None:
        """Return None: the weights are found under ``source``."""
        return None

    def to(self, device: torch.device | str, /) -> Self:
        """Move the text encoders to ``device``."""
        self._encoders.to(device)
        return self

    @property
    def conditions(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the conditions of a text: text states [L, E], and what else the pipeline makes."""
        return self._shapes

    @property
    def size_conditions(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the conditions of an image, which :meth:`sizes` makes; most pipelines have none."""
        return {"time_ids": (6,)} if self._sized else {}

    def sizes(
        self, originals: Sequence[Sequence[int]], crops: Sequence[Sequence[int]], size: Sequence[int]
    ) -> dict[str, Tensor]:
        """Return the conditions of images, see :func:`time_ids`; nothing where the network is told none."""
        return {"time_ids": time_ids(originals, crops, size)} if self._sized else {}

    @property
    def room(self) -> int:
        """Return how many tokens of a text are encoded by the encoder that takes most."""
        return self._roomiest()[0]

    def lengths(self, texts: list[str]) -> list[int]:
        """Return how many tokens each text has for the encoder that takes most."""
        if not texts:
            return []
        tokenizer = self._roomiest()[1]
        found = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        return [sum(token != tokenizer.unk_token_id for token in tokens) for tokens in found]

    def _roomiest(self) -> tuple[int, Any]:
        """Return the tokenizer with most room for a text, and how much that is."""
        rooms = []
        for part, encoder in self._encoders.items():
            config: Any = encoder.config
            tokenizer = getattr(self._pipeline, part.replace("text_encoder", "tokenizer"))
            most = self.tokens if config.model_type == "t5" else int(tokenizer.model_max_length)
            rooms.append(((most or 0) - tokenizer.num_special_tokens_to_add(), tokenizer))
        return max(rooms, key=lambda pair: pair[0])

    @torch.no_grad()
    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Encode texts to float32 conditions [B, ...] by name."""
        if not texts:
            device = next(self._encoders.parameters()).device
            return {name: torch.empty(0, *shape, device=device) for name, shape in self._shapes.items()}
        return self._encoded(texts, False)

    @torch.no_grad()
    def null(self) -> dict[str, Tensor]:
        """Return the conditions of no text as the pipeline has them, without the batch axis."""
        encoded = self._encoded([""], True)
        return {name: encoded.get(f"null_{name}", encoded[name])[0] for name in self._shapes}

    @torch.no_grad()
    def _encoded(self, texts: list[str], guidance: bool) -> dict[str, Tensor]:
        """Return what ``encode_prompt`` does, by name."""
        given = {
            "prompt": texts,
            "prompt_2": None,
            "prompt_3": None,
            "device": next(self._encoders.parameters()).device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guidance,
            "max_sequence_length": self.tokens,
        }
        found = self._pipeline.encode_prompt(**{name: value for name, value in given.items() if name in self._takes})
        named = dict(zip(self._outputs, found, strict=True))
        return {name: value.float() for name, value in named.items() if name and value is not None}


def _network(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the class of a pipeline's network and its config."""
    index = read_config(folder / "model_index.json")
    part = "unet" if "unet" in index else "transformer"
    config = read_config(folder / part / "config.json")
    return str(config.get("_class_name")), config


def _load(folder: Path, part: str, listed: Any) -> Any:
    """Load a text encoder or a tokenizer of a pipeline.

    Args:
        folder: Of the pipeline.
        part: Name of the part.
        listed: What the pipeline says of it: library and class.

    Raises:
        UserError: It has none, or one of another class, or lacks weights.
    """
    where = folder / part
    known = TOKENIZERS if part.startswith("tokenizer") else ENCODERS
    name = listed[-1] if isinstance(listed, list) and listed else None
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{where}: found {quoted(name)}, expected one of {', '.join(known)}")
    cls = getattr(transformers_of("text encoder", str(where)), name)
    if known is TOKENIZERS:
        return cls.from_pretrained(str(where), local_files_only=True, trust_remote_code=False)
    check_config(where / "config.json", read_config(where / "config.json"))
    model, loading = cls.from_pretrained(
        str(where), use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=True,
        trust_remote_code=False, variant=variant_of(where, "model"),
    )  # fmt: skip
    check_missing(str(where), [*loading["missing_keys"], *map(str, loading["mismatched_keys"])])
    check_finite(where, model)
    return model
