import json

import pytest
import torch
from torch import Tensor

from lightning_attr.encoders import (
    HashedWords,
    PatchPCA,
    image_encoder,
    text_encoder,
)
from lightning_attr.errors import UserError


def test_image_encoder_survives_json(images: Tensor) -> None:
    encoder = PatchPCA(2, 5)
    encoder.fit([images])
    again = image_encoder(json.loads(json.dumps(encoder.config())), encoder.state())
    latents = encoder.encode(images)
    assert torch.equal(again.encode(images), latents)
    assert torch.equal(again.decode(latents), encoder.decode(latents))


def test_text_encoder_survives_json() -> None:
    encoder = HashedWords(8, 10, 4)
    again = text_encoder(json.loads(json.dumps(encoder.config())), encoder.state())
    assert torch.equal(again.encode(["a cat", ""])["text"], encoder.encode(["a cat", ""])["text"])


def test_mistakes_in_a_schema_are_named() -> None:
    with pytest.raises(UserError, match="found class 'Wavelets', expected one of PatchPCA, AutoencoderKLEncoder"):
        image_encoder({"class": "Wavelets"}, None)
    with pytest.raises(UserError, match="holds no state"):
        image_encoder(PatchPCA().config(), None)
    with pytest.raises(UserError, match="found argument 'words'"):
        text_encoder({"class": "HashedWords", "words": 3}, None)
    with pytest.raises(UserError, match="found a state of 3 bytes, expected none"):
        text_encoder(HashedWords().config(), b"abc")
