"""Checkpoints and folders of others that are not what they should be: each is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import changed
from miniature import DENOISER
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.models import build, load
from lightning_attr.models.load import null_entries

WEIGHT = "denoiser.conv_in.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's checkpoint, as small as `load` reads it."""
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    weights = build(DENOISER, {}).network.state_dict()
    record = {"denoiser": DENOISER, "scheduler": {}, **null_entries({"text": torch.ones(6, 16)})}
    weights = {f"denoiser.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": weights, "trained_model": record}, path)
    return path


Change = Callable[[dict[str, Any]], object]


def put(value: Any, *keys: Any) -> Change:
    """Return the change of a nested entry."""

    def change(found: dict[str, Any]) -> None:
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return change


def denoiser(**arguments: Any) -> Change:
    return lambda found: found["trained_model"].update(denoiser={**DENOISER, **arguments})


def scheduler(**arguments: Any) -> Change:
    return put(arguments, "trained_model", "scheduler")


def weight(change: Callable[[Tensor], Any]) -> Change:
    return lambda found: found["state_dict"].update({WEIGHT: change(found["state_dict"][WEIGHT])})


CHANGES: dict[str, tuple[Change, str]] = {
    "a list for a number": (denoiser(norm_eps=[]), r"norm_eps: found \[\], expected a number"),
    "null for a number": (denoiser(mid_block_scale_factor=None), "mid_block_scale_factor: found None, expected"),
    "no weights": (lambda found: found.pop("state_dict"), "state_dict: found NoneType"),
    "no model": (lambda found: found.pop("trained_model"), "found no denoiser in it"),
    "a list of weights": (put([1], "state_dict"), "state_dict: found list"),
    "one tensor of weights": (put(torch.ones(2), "state_dict"), "state_dict: found Tensor"),
    "numbered weights": (put({0: torch.ones(2)}, "state_dict"), "keys that are no names"),
    "more weights": (put(torch.ones(2), "state_dict", "denoiser.more"), "another architecture"),
    "fewer weights": (lambda found: found["state_dict"].pop(WEIGHT), "another architecture"),
    "no weights at all": (put({}, "state_dict"), "another architecture"),
    "a number as weight": (put(3, "state_dict", WEIGHT), "found int"),
    "no weight": (put(None, "state_dict", WEIGHT), "found NoneType"),
    "nested weights": (put({"a": torch.ones(2)}, "state_dict", WEIGHT), "found dict"),
    "integers": (weight(lambda old: old.long()), "torch.int64"),
    "booleans": (weight(lambda old: old.bool()), "torch.bool"),
    "complex numbers": (weight(lambda old: old.cfloat()), "torch.complex64"),
    "sparse": (weight(lambda old: old.to_sparse()), "torch.sparse_coo"),
    "sparse rows": (weight(lambda old: old.flatten(1).to_sparse_csr()), "refused|torch.sparse_csr"),
    "quantized": (weight(lambda old: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8)), "torch.qint8"),
    "without memory": (weight(lambda old: old.to("meta")), "on meta"),
    "one number expanded": (weight(lambda old: torch.ones(1).expand(old.shape)), "numbers in 4 bytes"),
    "another shape": (weight(lambda old: old[:1]), "another architecture"),
    "flattened": (weight(lambda old: old.flatten()), "another architecture"),
    "not a number": (weight(lambda old: old * float("nan")), "not finite"),
    "infinite": (weight(lambda old: old / 0), "not finite"),
    "infinite in low precision": (weight(lambda old: (old * 1e9).half()), "not finite"),
    "the model a list": (put([1], "trained_model"), "trained_model: found list"),
    "the model none": (put(None, "trained_model"), "trained_model: found NoneType"),
    "the model numbered": (put({1: 2}, "trained_model"), "keys that are no names"),
    "no denoiser": (lambda found: found["trained_model"].pop("denoiser"), "trained_model.denoiser: found NoneType"),
    "a denoiser of lists": (put([("sample_size", 8)], "trained_model", "denoiser"), "denoiser: found list"),
    "a denoiser of words": (put("UNet", "trained_model", "denoiser"), "denoiser: found str"),
    "an empty denoiser": (put({}, "trained_model", "denoiser"), "another architecture"),
    "a denoiser with a number as key": (put({1: 2}, "trained_model", "denoiser"), "keys that are no names"),
    "no scheduler": (put(None, "trained_model", "scheduler"), "scheduler: found NoneType"),
    "a scheduler of lists": (put([], "trained_model", "scheduler"), "scheduler: found list"),
    "another class": (denoiser(_class_name="AutoencoderKL"), "found a network of class 'AutoencoderKL'"),
    "a class that runs code": (denoiser(_class_name="ModularPipeline"), "found a network of class"),
    "a class of a list": (denoiser(_class_name=["UNet2DConditionModel"]), "found a network of class"),
    "a class of a number": (denoiser(_class_name=5), "found a network of class 5"),
    "unknown arguments": (denoiser(colour="red"), "found colour, which UNet2DConditionModel does not take"),
    "huge layers": (denoiser(block_out_channels=[8, 1_000_000_000]), "another architecture|refuses its arguments"),
    "layers beyond counting": (denoiser(block_out_channels=[8, 10**30]), "refuses its arguments"),
    "layers without end": (denoiser(layers_per_block=10**9), "layers_per_block 1000000000, expected at most 100"),
    "nested layers without end": (denoiser(transformer_layers_per_block=[1, [10**9]]), "expected at most 100"),
    "negative layers": (denoiser(block_out_channels=[-8, -16]), "block_out_channels: found -8, expected at least 0"),
    "no layers": (denoiser(block_out_channels=[]), "refuses its arguments"),
    "words for layers": (denoiser(block_out_channels="wide"), "refuses its arguments"),
    "no channels": (denoiser(in_channels=0, out_channels=0), "in_channels 0, expected one positive number"),
    "channels in words": (denoiser(in_channels="4"), "in_channels '4', expected one positive number"),
    "negative sizes": (denoiser(sample_size=-8), "sample_size -8, expected"),
    "a size of three": (denoiser(sample_size=[8, 8, 8]), "sample_size"),
    "a size in words": (denoiser(sample_size="large"), "sample_size 'large', expected"),
    "two widths of text": (denoiser(cross_attention_dim=[16, 32]), "cross_attention_dim"),
    "a scheduler of no class": (scheduler(_class_name="NoScheduler"), "found class 'NoScheduler'"),
    "a pipeline as scheduler": (scheduler(_class_name="DiffusionPipeline"), "expected a SchedulerMixin"),
    "a scheduler's class of a list": (scheduler(_class_name=["DDPMScheduler"]), "expected a SchedulerMixin"),
    "steps without end": (scheduler(num_train_timesteps=10**12), "num_train_timesteps: found 1000000000000"),
    "negative steps": (scheduler(num_train_timesteps=-5), "num_train_timesteps: found -5"),
    "half a step": (scheduler(num_train_timesteps=0.5), "num_train_timesteps: found 0.5"),
    "steps in words": (scheduler(num_train_timesteps="1000"), "num_train_timesteps: found '1000'"),
    "betas beyond one": (scheduler(trained_betas=[0.1, 5.0, 0.1]), "no shares of noise"),
    "betas that are no numbers": (scheduler(trained_betas=[float("nan")] * 3), "no shares of noise"),
    "betas of nothing": (scheduler(trained_betas="much"), "refuses its arguments"),
    "negative betas": (scheduler(beta_start=-0.5), "no shares of noise"),
    "an unknown schedule": (scheduler(beta_schedule="wild"), "refuses its arguments"),
    "an unknown prediction": (scheduler(prediction_type=["epsilon"]), "prediction_type: found"),
    "a null condition in words": (put("a", "trained_model", "null_text"), "trained_model.null_text: found"),
    "no null condition": (put(None, "trained_model", "null_text"), "trained_model.null_text: found"),
    "a narrow null condition": (put(torch.ones(6, 3), "trained_model", "null_text"), "expected .*any x 16"),
    "a null condition of a batch": (put(torch.ones(1, 6, 16), "trained_model", "null_text"), "expected .*any x 16"),
    "a null condition of a name": (put(torch.ones(6, 16), "trained_model", "null_size"), "trained_model.null_size"),
    "a null condition not a number": (put(torch.full((6, 16), torch.nan), "trained_model", "null_text"), "finite"),
    "a sparse null condition": (put(torch.ones(6, 16).to_sparse(), "trained_model", "null_text"), "null_text: found"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_is_none(checkpoint: Path, tmp_path: Path, name: str) -> None:
    change, expected = CHANGES[name]
    path = changed(checkpoint, tmp_path / "other.ckpt", change)
    with pytest.raises(UserError) as refused:
        load(path)
    message = str(refused.value)
    assert message.startswith(f"checkpoint {path}: ")
    assert "\n" not in message
    assert re.search(expected, message), message


def test_the_same_checkpoint_loads(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    model = load(changed(checkpoint, tmp_path / "same.ckpt", lambda found: found))
    assert torch.equal(state, torch.get_rng_state())
    expected = build(DENOISER, {}).network.state_dict()
    found = model.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(value.is_meta for value in (*model.network.parameters(), *model.network.buffers()))


def test_weights_of_another_precision_become_float32(checkpoint: Path, tmp_path: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        found["state_dict"] = {name: value.half() for name, value in found["state_dict"].items()}

    model = load(changed(checkpoint, tmp_path / "half.ckpt", change))
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}
