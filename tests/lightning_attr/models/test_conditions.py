"""A model of another family: several conditions, of captions and of images, with numbers and without a fraction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules import Field, Meta, Sample, Schema, Store, StoreWriter
from datamodules.grouped import stacked
from datamodules.loading import TrainBatches, whole_samples
from lightning_attr.curvature.sums import EKFACSums, layers_on, linear_layers
from lightning_attr.errors import UserError
from lightning_attr.gradients import (
    Output,
    captured_gradients,
    functional_gradients,
    rows_of,
    sample_gradients,
    squared_norms,
)
from lightning_attr.layers import captured
from lightning_attr.losses import sample_losses
from lightning_attr.models import Conditions, Denoiser, Diffusion, Inputs, Model
from lightning_attr.noise import Draws, batch_noise, draw_timesteps
from lightning_attr.projection import Projection

FIELDS = {
    "latent": Field((2, 3, 4, 4), "float16", "latent"),
    "words": Field((3, 5, 6), "float16", "condition"),
    "mask": Field((3, 5), "int64", "condition"),
    "size": Field((1, 2), "float16", "condition"),
    "noise": Field((3, 4, 4), "float16"),
}


class Network(nn.Module):
    """Attends to words that a mask leaves, and adds a map of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(3, 6)
        self.keys, self.values, self.sizes = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, noisy: Tensor, words: Tensor, mask: Tensor, size: Tensor) -> Tensor:
        places = self.inside(noisy.flatten(2).transpose(1, 2))
        weight = (places @ self.keys(words).transpose(1, 2)).masked_fill(mask[:, None] == 0, -1e9).softmax(-1)
        added = (weight @ self.values(words) + self.sizes(size)[:, None]).tanh()
        return noisy + added.transpose(1, 2).unflatten(2, noisy.shape[2:])


class Family(Denoiser):
    class_name = "Network"
    patterns = {"all": ""}  # noqa: RUF012
    latent_shape = (3, 4, 4)
    conditions = {"words": (None, 6), "mask": (None,), "size": (2,)}  # noqa: RUF012

    @classmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None: ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        prediction: Tensor = self.network(noisy, **conditions)
        return prediction


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model(
        Family(Network().double().requires_grad_(False)), Diffusion({}), null={"words": torch.zeros(5, 6).double()}
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    generator = np.random.default_rng(0)
    with StoreWriter(tmp_path / "a.lmdb", Schema(FIELDS, {})) as writer:
        for sample in range(6):
            arrays = {
                name: generator.standard_normal(field.shape).astype(field.dtype) for name, field in FIELDS.items()
            }
            arrays["mask"] = (np.arange(5) < generator.integers(1, 6, (3, 1))).astype(np.int64)
            writer.write(Sample(Meta(sample, ("a",) * (1 + sample % 3), None, None, {}), arrays, b""))
        writer.finish()
    return Store(tmp_path / "a.lmdb")


def test_batches_hold_what_has_a_role(store: Store) -> None:
    batch, positions = TrainBatches(store, 0)[0, np.arange(6)], np.arange(6)
    assert batch.keys() == {"latent", "words", "mask", "size", "id", "showing", "view", "caption"}
    assert (batch["words"].dtype, batch["mask"].dtype) == (torch.float32, torch.int64)
    for name in ("words", "mask"):
        rows = store.read(name, positions, batch["caption"].numpy())
        np.testing.assert_array_equal(batch[name].numpy(), rows.astype(batch[name].numpy().dtype))
    assert set(batch["caption"].tolist()) > {0}
    np.testing.assert_array_equal(batch["size"].numpy(), store.read("size", positions)[:, 0].astype(np.float32))
    assert whole_samples(store, positions).keys() == {"latent", "words", "mask", "size", "captions", "id"}


def test_a_store_is_accepted_or_refused(model: Model, store: Store) -> None:
    model.accepts(store)
    store.schema = Schema({**store.schema.fields, "size": replace(FIELDS["size"], role=None)}, {})
    with pytest.raises(UserError, match="found latent, mask, words, expected size among them"):
        model.accepts(store)


def test_losses_equal_plain_loops(model: Model, store: Store) -> None:
    batch, draws = whole_samples(store, np.arange(6)), Draws(2, mode="own")
    found = sample_losses(model, batch, draws)
    for sample in range(6):
        for view in range(2):
            for draw, timestep in enumerate(draw_timesteps(draws, 1000)):
                each = [
                    model.losses(
                        batch["latent"][sample, view][None].double(),
                        {
                            "words": batch["words"][sample, caption][None].double(),
                            "mask": batch["mask"][sample, caption][None],
                            "size": batch["size"][sample, 0][None].double(),
                        },
                        timestep[None],
                        batch_noise(draws, draw, (3, 4, 4), [sample], view, caption).double(),
                    )
                    for caption in range(int(batch["captions"][sample]))
                ]
                torch.testing.assert_close(
                    found[sample, view, draw].double(), torch.cat(each).mean(), rtol=1e-6, atol=0
                )


def test_gradients_of_layers_on_any_condition(model: Model, store: Store) -> None:
    """The products at both conditions are formed late, and all is as torch.func has it."""
    selected, batch = model.select("all"), whole_samples(store, np.arange(6))
    torch.manual_seed(1)
    rows = {name: batch[name][:, 0] for name in ("words", "mask", "size")}
    conditions = {name: value if name == "mask" else value.double() for name, value in rows.items()}
    noise, timesteps = torch.randn(6, 3, 4, 4).double(), torch.tensor([5, 100, 300, 500, 700, 900])
    inputs = Inputs(batch["latent"][:, 0].double(), conditions, timesteps, noise)

    def losses(network: nn.Module, inputs: Inputs) -> Tensor:
        return replace(model, denoiser=Family(network)).losses(*inputs)

    layers = {name: model.network.get_submodule(name.rpartition(".")[0]) for name in selected}
    found = captured_gradients(layers, lambda: losses(model.network, inputs), conditions)  # type: ignore[arg-type]
    expected = functional_gradients(model.network, selected, losses, inputs)
    assert {name: set(parts) for name, parts in found.at_output.items()} == {
        "words": {"keys.weight", "values.weight"},
        "size": {"sizes.weight"},
    }
    named = dict(found.named())
    assert named.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(named[name], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(squared_norms(found), found.flat().square().sum(1))


def test_rows_of_conditions_of_any_number_of_axes() -> None:
    shapes = {"number": (6,), "vector": (6, 3), "states": (6, 4, 3), "grid": (6, 2, 2, 3)}
    rows = rows_of({name: torch.arange(math.prod(s)).reshape(s) for name, s in shapes.items()})
    assert {name: value.shape[1:] for name, value in rows.items()} == {
        "number": (1, 1), "vector": (1, 3), "states": (4, 3), "grid": (4, 3)
    }  # fmt: skip
    assert rows["number"].flatten().tolist() == list(range(6))


def test_stacks_of_groups_keep_all_conditions(store: Store) -> None:
    batch = TrainBatches(store, 0)[0, np.arange(6)]
    stack = stacked([batch, {name: value[:4] for name, value in batch.items()}], [0, 1])
    assert stack["batch_size"].tolist() == [6, 4]
    for name in ("words", "mask", "size"):
        assert torch.equal(stack[name][0], batch[name])
        assert torch.equal(stack[name][1], batch[name][[0, 1, 2, 3, 3, 3]])


def test_means_norms_and_projections(model: Model, store: Store) -> None:
    selected, batch = model.select("all"), whole_samples(store, np.arange(6))
    output = Output(draws=Draws(3, mode="own"))
    found = sample_gradients(model, selected, batch, output)
    batches = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(6)]
    alone = [sample_gradients(model, selected, one, output) for one in batches]
    torch.testing.assert_close(found.flat(), torch.cat([one.flat() for one in alone]))
    torch.testing.assert_close(squared_norms(found), found.flat().square().sum(1))
    whole = Projection(selected, len(selected) * max(weight.numel() for weight in selected.values()))
    torch.testing.assert_close(whole(found).square().sum(1), found.flat().square().sum(1))


def test_layers_on_one_condition_share_a_factor(model: Model, store: Store) -> None:
    selected = {name: weight for name, weight in model.select("all").items() if name.endswith("weight")}
    layers = linear_layers(model.network, selected, "ekfac")
    shapes = {"words": (1, 5, 6), "mask": (1, 5), "size": (1, 2)}
    conditions = {name: torch.ones(shape).double() for name, shape in shapes.items()}
    noisy = torch.zeros(1, 3, 4, 4).double()
    calls = captured(layers, lambda: model.predict(noisy, torch.zeros(1), conditions).flatten(1).sum(1))
    shared = layers_on(conditions, calls, layers)
    assert shared == {"keys": "words", "values": "words", "sizes": "size"}
    assert EKFACSums(model.network, selected, shared).inputs == {**shared, "inside": "input of inside"}


def test_only_what_has_a_null_is_dropped(model: Model) -> None:
    conditions = {"words": torch.ones(2, 5, 6).double(), "size": torch.ones(2, 2).double()}
    dropped = model.with_null(conditions, torch.tensor([True, False]))
    assert dropped["words"].flatten(1).sum(1).tolist() == [0, 30]
    assert torch.equal(dropped["size"], conditions["size"])
    assert model.with_null({"words": torch.ones(2, 5, 6)}, torch.ones(2).bool())["words"].dtype == torch.float32
    encoder: Any = SimpleNamespace(null=lambda: {"words": torch.ones(5, 6), "of another network": torch.ones(3)})
    assert model.denoiser.null(encoder).keys() == {"words"}
    model.network.float()
    prompts = {name: value.float() for name, value in conditions.items()} | {"mask": torch.ones(2, 5)}
    latents, _ = model.generate(prompts, [1, 2], size=(4, 4), steps=2, guidance=3.0)
    assert latents.isfinite().all()
