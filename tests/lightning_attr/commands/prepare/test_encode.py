"""What a store holds of what encoders give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.store import Meta
from lightning_attr.commands.prepare.encode import Recipe
from lightning_attr.encoders import HashedWords, PatchPCA
from lightning_attr.errors import UserError


class Large(HashedWords):
    """Words whose states are as large as told, for one text."""

    def __init__(self, number: float) -> None:
        super().__init__(8, 4)
        self.number = number

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        states = super().encode(texts)
        for row, text in enumerate(texts):
            if text == "large":
                states["text"][row, 0, 0] = self.number
        return states


METAS = [Meta(id, (f"caption {id}", "another"), None, None, {}) for id in (7, 14, 21)]


def encoded(recipe: Recipe, metas: list[Meta]) -> list[dict[str, np.ndarray]]:  # type: ignore[type-arg]
    return recipe.arrays(np.full((3, 8, 8, 3), 100, np.uint8), metas)


@pytest.mark.parametrize("number", [65_520.0, 1e30, float("inf"), float("-inf"), float("nan")])
def test_numbers_that_half_precision_cannot_hold_are_refused(number: float) -> None:
    image = PatchPCA()
    image.fit([torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)])
    metas = [METAS[0], Meta(14, ("fine", "large"), None, None, {}), METAS[2]]
    with pytest.raises(UserError, match="image 14: found no finite text"):
        encoded(Recipe(image, Large(number), 8, captions=2, flips=True), metas)
    image.mean += 1000 * number
    with pytest.raises(UserError, match="image 7: found no finite latent"):
        encoded(Recipe(image, HashedWords(8, 4), 8, captions=2, flips=True), metas)


def test_the_largest_number_is_kept() -> None:
    image = PatchPCA()
    image.fit([torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)])
    arrays = encoded(Recipe(image, Large(65_504.0), 8, 2, True), [Meta(1, ("large",), None, None, {}), *METAS[1:]])
    assert arrays[0]["text"][0, 0, 0] == 65_504
    assert not arrays[0]["text"][1].any()
