"""A new word changes the states that are its own and no others, and is trained by their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from small_network import model_of, small_network
from torch import Tensor

from lightning_attr.encoders import HashedWords
from lightning_attr.errors import UserError
from lightning_attr.gradients import functional_gradients, per_sample_gradients
from lightning_attr.models import Inputs, Model
from lightning_attr.models.new_word import NEW_WORD, OFFSET, attach, tell

ENCODER = HashedWords(tokens=5, dim=12, seed=3)

#: Where the word stands in each: twice, once, nowhere, beyond what is encoded.
TEXTS = {"Sks and sks": (1, 3), "by sks": (2,), "by skss": (), "a b c sks": ()}


def with_word(offset: Tensor | None = None) -> Model:
    network = small_network()
    assert attach(network, 12) == OFFSET
    tell(network, "Sks", ENCODER)
    if offset is not None:
        network.get_parameter(OFFSET).data = offset.double()
    return model_of(network.double().requires_grad_(False))


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(len(TEXTS), 4, 8, 8, generator=generator).double() for _ in range(2))
    return Inputs(latent, {"text": ENCODER.encode(list(TEXTS))["text"].double()}, torch.tensor([1, 9, 99, 999]), noise)


def moved(text: Tensor, offset: Tensor) -> Tensor:
    """Text states with an offset where the word is, written out."""
    rows = []
    for row, places in zip(text, TEXTS.values(), strict=True):
        rows.append(torch.stack([row[place] + offset if place in places else row[place] for place in range(len(row))]))
    return torch.stack(rows)


def test_predictions_are_those_of_states_that_were_moved() -> None:
    offset = torch.randn(12, generator=torch.Generator().manual_seed(1))
    latent, conditions, timesteps, noise = inputs()
    plain = model_of(small_network())
    found = with_word(offset).losses(latent, conditions, timesteps, noise)
    expected = plain.losses(latent, {"text": moved(conditions["text"], offset.double())}, timesteps, noise)
    assert torch.equal(found, expected)
    before = plain.losses(latent, conditions, timesteps, noise)
    assert torch.equal(with_word().losses(latent, conditions, timesteps, noise), before)
    assert (found == before).tolist() == [False, False, True, True]


def test_the_gradient_is_the_sum_over_the_places_of_the_word() -> None:
    model, offset = with_word(), torch.zeros(12).double().requires_grad_()
    latent, conditions, timesteps, noise = inputs()
    weight = model.network.get_parameter(OFFSET).requires_grad_()
    (found,) = torch.autograd.grad(model.losses(latent, conditions, timesteps, noise).sum(), [weight])
    plain = model_of(small_network())
    losses = plain.losses(latent, {"text": moved(conditions["text"], offset)}, timesteps, noise)
    (expected,) = torch.autograd.grad(losses.sum(), [offset])
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected)


def test_gradients_of_matrices_by_hooks_are_those_of_torch_func() -> None:
    model = with_word(torch.ones(12))
    selected = model.select("cross_kv")
    model = model.with_adapter([*selected, OFFSET])
    assert model.select(None).keys() == model.select("cross_kv").keys() == selected.keys()
    assert OFFSET in model.select("all")

    def losses(network: torch.nn.Module, inputs: Inputs) -> Tensor:
        return model.over(network).losses(*inputs)

    found = per_sample_gradients(model.network, selected, losses, inputs())
    expected = functional_gradients(
        model.network, {**selected, OFFSET: model.network.get_parameter(OFFSET)}, losses, inputs()
    )
    for name in selected:
        torch.testing.assert_close(found[name], expected[name])
    assert (expected[OFFSET].abs().amax(1) > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_states_are_known_again_after_rounding(stored: torch.dtype, dtype: torch.dtype) -> None:
    encoder = HashedWords(tokens=64, dim=64)
    network = torch.nn.Module()
    attach(network, 64)
    tell(network, "sks", encoder)
    network.get_parameter(OFFSET).data.fill_(8)
    others = [f"word{number}" for number in range(60)]
    text = encoder.encode([" ".join(others), " ".join(["sks"] * 62)])["text"].to(stored).to(dtype)
    added = (network.to(dtype).get_submodule(NEW_WORD)(text) - text).detach()
    assert not added[0].any()
    assert added[1].mean(1).round().tolist() == [0, *[8] * 62, 0]


def test_a_copy_has_a_word_of_its_own() -> None:
    """A group stacks the weights of copies."""
    model = with_word()
    other = model.over(copy.deepcopy(model.network))
    other.network.get_parameter(OFFSET).data += 1
    before, after = (each.losses(*inputs()) for each in (model, other))
    assert (before == after).tolist() == [False, False, True, True]


def test_states_of_another_width() -> None:
    with pytest.raises(UserError, match="found states of 8 features, expected 12"):
        tell(with_word().network, "sks", HashedWords(5, 8))
