"""Build a denoiser and its noise scheduler from configs, load them from a checkpoint, select weights of them."""

from __future__ import annotations

import inspect
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError

#: Names for the weights that attribution works on; any other string is a regular expression over parameter names.
WEIGHT_PATTERNS: Mapping[str, str] = {
    "cross_kv": r"\battn2\.to_[kv]\.",
    "cross_attention": r"\battn2\.",
    "attention": r"\battn[12]\.",
    "matrices": r"^(?!.*norm).*\.weight$",  # of all linear layers and convolutions
    "all": r"",
}

#: What a denoiser may be trained to predict, see :func:`lightning_attr.diffusion.prediction_target`.
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass
class TrainedModel:
    """A denoiser as a checkpoint holds it.

    Attributes:
        denoiser: The network, in evaluation mode.
        scheduler: Its noise scheduler.
        null_text: Text state of the empty caption, [L, E].
        latent_shape: C, H, W of the latents that it was trained on.
        configs: ``denoiser`` and ``scheduler``, as given to :func:`build`.
        path: The checkpoint; empty where the model is of none.
        digest: Of the checkpoint's file; empty likewise.
    """

    denoiser: nn.Module
    scheduler: Any
    null_text: Tensor
    latent_shape: tuple[int, int, int]
    configs: Mapping[str, Any]
    path: str = ""
    digest: str = ""


def build_denoiser(config: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a diffusers network from its config, with initial weights that depend on ``seed`` alone.

    ``_class_name`` names the class (default ``UNet2DConditionModel``), as in a diffusers ``config.json``.

    Raises:
        UserError: The class or one of its arguments does not exist.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build("model.denoiser", {"_class_name": "UNet2DConditionModel", **config})
    assert isinstance(network, nn.Module)
    return network


def build_scheduler(config: Mapping[str, Any]) -> Any:
    """Build a diffusers noise scheduler from its config; ``_class_name`` defaults to ``DDPMScheduler``.

    Raises:
        UserError: The class or one of its arguments does not exist, or it predicts something else.
    """
    scheduler = _build("model.scheduler", {"_class_name": "DDPMScheduler", **config})
    found = scheduler.config.get("prediction_type")
    if found not in PREDICTION_TYPES:
        raise UserError(f"model.scheduler.prediction_type: found {found!r}, expected {' or '.join(PREDICTION_TYPES)}")
    return scheduler


def _build(key: str, config: Mapping[str, Any]) -> Any:
    arguments = dict(config)
    name = arguments.pop("_class_name")
    cls = getattr(diffusers, name, None)
    if not inspect.isclass(cls):
        raise UserError(f"{key}: found class {name!r}, expected one of diffusers")
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    if unknown := sorted(set(arguments) - known):
        raise UserError(
            f"{key}: found {', '.join(unknown)}, which {name} does not take; it takes {', '.join(sorted(known))}"
        )
    try:
        return cls(**arguments)
    except Exception as error:  # what a constructor of diffusers makes of arguments that do not fit is its own
        raise UserError(f"{key}: {name} refuses its arguments: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the message of an error of another library on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running code from it.

    Raises:
        UserError: There is none, it is damaged, or it holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        _check_bits(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own for a damaged file
        # Of a file that asks to run code, torch advises on the next lines to trust it.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"checkpoint {path}: refused, it is damaged, not a checkpoint, or asks to run code ({reason})"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint {path}: found a {type(checkpoint).__name__}, expected a Lightning checkpoint")
    return checkpoint


def _check_bits(path: str | Path) -> None:
    """Check the checksums that torch writes into the file but does not check."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (name := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {name} does not match")


def load_trained(path: str | Path) -> TrainedModel:
    """Load the denoiser that ``LatentDiffusion`` trained; where an average was kept, it is the average.

    Raises:
        UserError: The file is not such a checkpoint, see also :func:`read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    if "trained_model" not in checkpoint:
        raise UserError(f"checkpoint {path}: found no denoiser in it, expected a checkpoint of LatentDiffusion")
    configs = checkpoint["trained_model"]
    denoiser = build_denoiser(configs["denoiser"], seed=0)
    weights = {name.removeprefix("denoiser."): value for name, value in checkpoint["state_dict"].items()}
    load_weights(denoiser, weights, path)
    return TrainedModel(
        denoiser=denoiser.eval(),
        scheduler=build_scheduler(configs["scheduler"]),
        null_text=configs["null_text"],
        latent_shape=tuple(configs["latent_shape"]),
        configs={"denoiser": configs["denoiser"], "scheduler": configs["scheduler"]},
        path=str(path),
        digest=file_digest(path),
    )


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``weights`` into ``network``, all of them and no others.

    Raises:
        UserError: Names or shapes differ: it is a checkpoint of another architecture.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise UserError(
            f"checkpoint {source}: of another architecture: found {name} {found.get(name, 'missing')}, "
            f"expected {expected.get(name, 'none')}"
        )
    network.load_state_dict(dict(weights))


def select_weights(network: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Return the parameters that ``pattern`` selects, by name.

    Args:
        network: The denoiser.
        pattern: A name of :data:`WEIGHT_PATTERNS` or a regular expression, searched in parameter names.

    Raises:
        UserError: The pattern is no regular expression, or it selects nothing.
    """
    known = f"known names are {', '.join(WEIGHT_PATTERNS)}; others are regular expressions over parameter names"
    try:
        regex = re.compile(WEIGHT_PATTERNS.get(pattern, pattern))
    except re.error as error:
        raise UserError(f"weights: {pattern!r} is not a regular expression ({error}); {known}") from error
    selected = {name: parameter for name, parameter in network.named_parameters() if regex.search(name)}
    if not selected:
        raise UserError(f"weights: {pattern!r} selects nothing; {known}")
    return selected
