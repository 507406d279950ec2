"""``HashedWords``: a frozen random embedding per word, with nothing to download or to store.

Shapes: B texts.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
import xxhash
from torch import Tensor

from lightning_attr.errors import UserError

_MOST_TOKENS, _MOST_DIM = 4096, 16384  # beyond all text models
_WORD = re.compile(r"\w+(?:'\w+)*")
# Names of the special tokens: no word can have one, for a word holds no angle bracket.
_BEGIN, _END, _PAD = "<begin>", "<end>", "<pad>"


class HashedWords:
    """Begin token, one token per word, end token, pad tokens; sinusoidal positions are added to all of them.

    A word's embedding is Gaussian noise seeded by the word's hash: two words are nearly orthogonal, and the same word
    is the same vector on every machine and in every process. Words are lower-cased; a text with more than
    ``tokens - 2`` of them is cut. The null caption "" is begin, end and pads.

    Args:
        tokens: Tokens of an encoded text, begin and end included.
        dim: Width of an embedding; even, as positions are pairs of sine and cosine.
        seed: Another seed is another set of embeddings.
    """

    def __init__(self, tokens: int = 16, dim: int = 64, seed: int = 0) -> None:
        if not 3 <= tokens <= _MOST_TOKENS or not 2 <= dim <= _MOST_DIM or dim % 2:
            raise UserError(
                f"HashedWords: found {tokens=}, {dim=}, expected 3 to {_MOST_TOKENS} tokens and an even dim from 2 to "
                f"{_MOST_DIM}"
            )
        self.tokens, self.dim, self.seed = tokens, dim, seed
        self._positions = _sinusoids(tokens, dim)

    def config(self) -> dict[str, Any]:
        """Return the class and its arguments."""
        return {"class": "HashedWords", "tokens": self.tokens, "dim": self.dim, "seed": self.seed}

    def state(self) -> bytes | None:
        """Return None: the arguments determine every embedding."""
        return None

    def to(self, device: torch.device | str, /) -> Self:
        """Encode onto ``device``."""
        self._positions = self._positions.to(device)
        return self

    @property
    def conditions(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the text states."""
        return {"text": (self.tokens, self.dim)}

    @property
    def room(self) -> int:
        """Return how many words of a text are encoded."""
        return self.tokens - 2

    def lengths(self, texts: list[str]) -> list[int]:
        """Return how many words each text has."""
        return [len(_WORD.findall(text.lower())) for text in texts]

    def words(self, text: str) -> list[str]:
        """Return the words of a text that are encoded, lower-cased."""
        return _WORD.findall(text.lower())[: self.room]

    def states_of(self, word: str) -> Tensor:
        """Return the states of a word at each place of a text, float32 [tokens, dim]."""
        return torch.from_numpy(_embedding(word.lower(), self.dim, self.seed)).to(self._positions) + self._positions

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Encode texts to float32 states, ``text`` [B, tokens, dim]."""
        if not texts:
            return {"text": self._positions.new_empty(0, self.tokens, self.dim)}
        words = [self._embed(text) for text in texts]
        return {"text": torch.from_numpy(np.stack(words)).to(self._positions.device) + self._positions}

    def null(self) -> dict[str, Tensor]:
        """Return the conditions of the empty text, without the batch axis."""
        return {name: value[0] for name, value in self.encode([""]).items()}

    def _embed(self, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Turn one text into embeddings [tokens, dim], without positions."""
        words = [_BEGIN, *self.words(text), _END]
        words += [_PAD] * (self.tokens - len(words))
        return np.stack([_embedding(word, self.dim, self.seed) for word in words])


def is_word(text: str) -> bool:
    """Return whether a text is one word and nothing else."""
    return _WORD.fullmatch(text.lower()) is not None


@lru_cache(maxsize=65_536)
def _embedding(word: str, dim: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the standard normal vector [dim] that belongs to the word.

    NumPy's legacy ``RandomState`` is used because its stream is frozen by policy: a store written today and a prompt
    encoded years from now agree.
    """
    digest = xxhash.xxh3_64_intdigest(f"{seed} {word}".encode())
    generator = np.random.RandomState([digest & 0xFFFFFFFF, digest >> 32])
    return generator.standard_normal(dim).astype(np.float32)


def _sinusoids(tokens: int, dim: int) -> Tensor:
    """Return the sine and cosine positions [tokens, dim] of "Attention is all you need", section 3.5."""
    frequencies = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angles = torch.arange(tokens)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
