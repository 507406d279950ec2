"""A new word: what training adds to the embedding of one word, wherever a text has it.

The network finds the word in the text states that it is given, so training, sampling and attribution need not know of
it. That takes an encoder whose state of a word is the word's embedding and a position, as that of ``HashedWords``; with
others all states of a text change with a word.

Shapes: B texts, T tokens of E features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.store import Store
from lightning_attr.encoders import HashedWords, TextEncoder
from lightning_attr.errors import UserError

#: What it is called in its network, and its one parameter.
NEW_WORD = "new_word"
OFFSET = f"{NEW_WORD}.offset"

#: How far a state may be from the word's: half precision and bfloat16 round by less, other words are farther away.
RELATIVE, ABSOLUTE = 2**-7, 1e-3


class NewWord(nn.Module):
    """The offset of a word's embedding, zero at first.

    Args:
        width: Features of an embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.offset = nn.Parameter(torch.zeros(width))
        self.states: Tensor
        self.register_buffer("states", torch.empty(0, width), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """Return text states [B, T, E] with the offset where they are those of the word."""
        near = (text - self.states).abs() <= ABSOLUTE + RELATIVE * self.states.abs()
        return torch.where(near.all(-1, keepdim=True), text + self.offset, text)


def attach(network: nn.Module, width: int) -> str:
    """Attach a new word to a network, which does not know yet how texts have it; return its parameter's name.

    Args:
        network: It is given text states as ``encoder_hidden_states``.
        width: Of these.
    """
    network.add_module(NEW_WORD, NewWord(width))
    network.register_forward_pre_hook(_with_word, with_kwargs=True)
    return OFFSET


def _with_word(network: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Change what the network is given; it is asked for its word by name, for it may be a copy of another."""
    word = network.get_submodule(NEW_WORD)
    return args, {**named, "encoder_hidden_states": word(named["encoder_hidden_states"])}


def encoder_of_words(encoder: TextEncoder) -> HashedWords:
    """Return an encoder whose state of a word is its embedding and a position.

    Raises:
        UserError: It is another one.
    """
    if not isinstance(encoder, HashedWords):
        raise UserError(
            f"model.base.adapter.token: found texts of {type(encoder).__name__}, expected those of HashedWords: with "
            "others all states of a text change with a word"
        )
    return encoder


def tell(network: nn.Module, word: str, encoder: HashedWords) -> None:
    """Tell a network with a new word how an encoder's texts have it.

    Raises:
        UserError: The encoder's states are of another width.
    """
    own = network.get_submodule(NEW_WORD)
    assert isinstance(own, NewWord)
    if encoder.dim != own.width:
        raise UserError(f"model.base.adapter.token: found states of {encoder.dim} features, expected {own.width}")
    own.states = encoder.states_of(word).to(own.offset)


def check_said(word: str, encoder: HashedWords, store: Store) -> None:
    """Check that a caption of a store has the word where it is encoded.

    Raises:
        UserError: None has it: training would leave it as it is.
    """
    captions = (caption for place in range(len(store)) for caption in store.meta(place).captions)
    if not any(word.lower() in encoder.words(caption) for caption in captions):
        raise UserError(
            f"model.base.adapter.token: found {word!r} in no caption of {store.path}, expected a word of some"
        )
