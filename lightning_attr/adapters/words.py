"""Textual inversion: new words of a tokenizer, with embeddings of their own.

Shapes: V vectors of a word, E features of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attr.adapters.lora import File
from lightning_attr.errors import UserError

Words = Mapping[str, Mapping[str, Tensor]]
"""The embeddings [V, E] of each word, by the part of the pipeline, such as ``text_encoder``."""

#: The keys of SDXL's files, and the text encoders that they are for.
ENCODERS: Mapping[str, str] = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def read_words(file: File) -> dict[str, dict[str, Tensor]]:
    """Return the words of a file; nothing where it is of another kind."""
    tensors = file.tensors
    word = Path(file.where).name.rpartition(".")[0]
    if tensors and tensors.keys() <= ENCODERS.keys():
        return {ENCODERS[key]: {word: _rows(value)} for key, value in tensors.items()}
    if tensors.keys() == {"emb_params"}:
        return {"text_encoder": {word: _rows(tensors["emb_params"])}}
    if tensors and not any("." in key and key[0] != "<" for key in tensors):
        return {"text_encoder": {key: _rows(value) for key, value in tensors.items()}}
    return {}


def _rows(value: Tensor) -> Tensor:
    return value if value.ndim == 2 else value.reshape(1, -1)


def add_words(where: str, words: Mapping[str, Tensor], encoder: nn.Module, tokenizer: Any) -> None:
    """Teach a text encoder and its tokenizer words; one of several vectors is ``word word_1 word_2`` as in diffusers.

    Raises:
        UserError: The tokenizer knows one already, or they are of other widths.
    """
    table: Any = encoder.get_input_embeddings()  # type: ignore[operator]
    width = table.weight.shape[1]
    for word, rows in words.items():
        if rows.ndim != 2 or rows.shape[1] != width or not bool(rows.isfinite().all()):
            raise UserError(f"{where}: {word}: found {tuple(rows.shape)}, expected finite vectors of {width} numbers")
        tokens = [word, *(f"{word}_{place}" for place in range(1, len(rows)))]
        if tokenizer.add_tokens(tokens) != len(tokens):
            raise UserError(f"{where}: found the word {word!r}, expected one that the tokenizer does not know")
        encoder.resize_token_embeddings(len(tokenizer))  # type: ignore[operator]
        table = encoder.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            table.weight[tokenizer.convert_tokens_to_ids(tokens)] = rows.to(table.weight)
    encoder.eval().requires_grad_(False)
