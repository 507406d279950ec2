"""What a method is said to hold is what it holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_network import model_of, small_batch, small_network

from lightning_attr.errors import UserError
from lightning_attr.gradients import Output, SampleGradients
from lightning_attr.methods import GradientSimilarity, Trak
from lightning_attr.methods.base import Context
from lightning_attr.methods.held import held
from lightning_attr.noise import Draws
from tools.held import methods

THREE = Output(draws=Draws(3))


def nbytes(gradients: SampleGradients) -> int:
    parts = [*gradients.dense.values(), *(each for part in gradients.at_output.values() for each in part.values())]
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("weights", ["cross_kv", "attention"])
@pytest.mark.parametrize("per_draw", [False, True])
def test_bytes_of_gradients(weights: str, per_draw: bool) -> None:
    batch = small_batch([4, 5], views=1)
    queries = SimpleNamespace(path="queries.lmdb", digest="")
    context = Context(batch, queries, None, model_of(small_network()), torch.device("cpu"))  # type: ignore[arg-type]
    method = GradientSimilarity(output=THREE, weights=weights, per_draw=per_draw, captions=None)
    method.prepare(context)
    tokens, captions = batch["text"].shape[2], batch["text"].shape[1]
    with torch.device("meta"):
        network = small_network()
    found = held(method, model_of(network), tokens, captions)
    assert found.query == sum(each.nbytes for rows in method._rows for each in rows.values()) / 2
    one = next(method.gradients(batch))
    formed = max(dict(one.named())[name].nbytes for part in one.at_output.values() for name in part)
    assert found.sample == (nbytes(one) + formed) / 2


def test_influence_per_draw_holds_one_draw_and_trak_its_projection() -> None:
    network = model_of(small_network())
    numbers = sum(weight.numel() for weight in network.select("attention").values())
    by_name = dict(methods("attention"))
    assert held(by_name["EK-FAC per draw"], network, 5).query == 8 * numbers
    assert by_name["EK-FAC per draw"].per_draw
    assert held(Trak(projection=16, output=THREE, per_draw=True), network, 5).query == 8 * 3 * 16
    assert held(Trak(projection=None, output=THREE, weights="attention"), network, 5).query == 8 * numbers


def test_weights_that_are_not_there() -> None:
    with pytest.raises(UserError, match="selects nothing"):
        held(GradientSimilarity(weights="nowhere"), model_of(small_network()), 5)
