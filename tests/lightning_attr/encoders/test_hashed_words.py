import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_attr.encoders import HashedWords, is_word
from lightning_attr.errors import UserError

ROOT = Path(__file__).parents[3]
TEXTS = ["A cat on a mat.", "", "ein Bär läuft"]
PROGRAM = f"""
import sys
from lightning_attr.encoders import HashedWords, is_word
sys.stdout.buffer.write(HashedWords(8, 12, seed=3).encode({TEXTS!r})["text"].numpy().tobytes())
"""


@pytest.mark.slow
def test_same_in_every_process() -> None:
    """Python's own hash of a string differs from process to process; ours must not."""
    here = HashedWords(8, 12, seed=3).encode(TEXTS)["text"].numpy().tobytes()
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, env=environment, cwd=ROOT)
    assert done.stdout == here


def test_values_are_frozen() -> None:
    """A store written by an earlier version must agree with prompts encoded now."""
    states = HashedWords(4, 4).encode(["cat"])["text"]
    assert states.shape == (1, 4, 4)
    assert states[0, 1].tolist() == pytest.approx([1.3709656, 1.3098848, -1.0985706, -0.2891840], abs=1e-6)


def test_layout() -> None:
    encoder = HashedWords(tokens=6, dim=8)
    embeddings = encoder.encode(["red cat", "", "red"])["text"] - encoder.encode([""])["text"][0]
    changed = embeddings.abs().amax(-1) > 1e-5
    # begin, first word or end, second word or pad, end or pad, pads
    assert changed.tolist() == [
        [False, True, True, True, False, False],
        [False] * 6,
        [False, True, True, False, False, False],
    ]


def test_long_texts_are_cut_and_keep_their_end_token() -> None:
    encoder = HashedWords(tokens=5, dim=8)
    assert torch.equal(*encoder.encode(["one two three four five", "one two three"])["text"])


def test_case_and_punctuation_do_not_matter_but_order_does() -> None:
    same, other, swapped = HashedWords().encode(["A red, RED cat!", "a red red cat", "a cat red red"])["text"]
    assert torch.equal(same, other)
    assert not torch.equal(same, swapped)


def test_embeddings_are_gaussian_and_nearly_orthogonal() -> None:
    encoder = HashedWords(tokens=3, dim=256)
    words = encoder.encode([f"word{i}" for i in range(200)])["text"][:, 1] - encoder._positions[1]
    assert float(words.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(words.std()) == pytest.approx(1.0, abs=0.02)
    cosines = torch.nn.functional.normalize(words, dim=1) @ torch.nn.functional.normalize(words, dim=1).T
    assert float((cosines - torch.eye(200)).abs().max()) < 0.4


def test_seed_changes_every_word() -> None:
    one, other = HashedWords(seed=0).encode(["a cat"])["text"], HashedWords(seed=1).encode(["a cat"])["text"]
    assert ((one - other).abs().amax(-1) > 0.1).all()


def test_no_texts() -> None:
    assert HashedWords(4, 6).encode([])["text"].shape == (0, 4, 6)


@pytest.mark.parametrize(("tokens", "dim"), [(2, 8), (4, 7), (4, 0)])
def test_impossible_shapes_are_refused(tokens: int, dim: int) -> None:
    with pytest.raises(UserError, match=f"found tokens={tokens}, dim={dim}"):
        HashedWords(tokens, dim)


def test_states_of_a_word_are_those_that_texts_have() -> None:
    encoder = HashedWords(tokens=5, dim=8, seed=3)
    states = encoder.states_of("CAT")
    text = encoder.encode(["Cat, cat cat"])["text"][0]
    assert torch.equal(text[1:4], states[1:4])
    assert encoder.words("A cat's hat, on top") == ["a", "cat's", "hat"]


@pytest.mark.parametrize(
    ("text", "one"), [("sks", True), ("cat's", True), ("two words", False), ("<sks>", False), ("", False)]
)
def test_one_word(text: str, one: bool) -> None:
    assert is_word(text) == one
