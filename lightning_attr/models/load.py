"""Load a model: from our own checkpoint, or from a folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.digests import file_digest, joined_digest
from lightning_attr.encoders import CLIPText
from lightning_attr.errors import UserError, one_line
from lightning_attr.models.denoiser import Denoiser
from lightning_attr.models.model import Model, build, family
from lightning_attr.models.process import Diffusion

WEIGHTS = "diffusion_pytorch_model"

#: Before the name of a null condition in what is written of a model.
NULL = "null_"


def load(path: str | Path, variant: str | None = None) -> Model:
    """Load a model, frozen and in evaluation mode.

    Args:
        path: A checkpoint of ``LatentDiffusion`` (where an average was kept, it is the average), a folder of a
            diffusers pipeline, or its ``unet`` folder. Of a ``unet`` folder alone the null conditions are not known.
        variant: Which weights of a folder, such as ``fp16``. None is the plain ones, or the only variant that is there.

    Raises:
        UserError: It is none of these, damaged, or of a family that is not known.
    """
    return _from_folder(Path(path), variant) if Path(path).is_dir() else _from_checkpoint(path)


def _from_checkpoint(path: str | Path) -> Model:
    checkpoint = read_checkpoint(path)
    if "trained_model" not in checkpoint:
        raise UserError(f"checkpoint {path}: found no denoiser in it, expected a checkpoint of LatentDiffusion")
    record = checkpoint["trained_model"]
    model = build(record["denoiser"], record["scheduler"])
    weights = {name.removeprefix("denoiser."): value for name, value in checkpoint["state_dict"].items()}
    load_weights(model.network, weights, path)
    model.network.eval().requires_grad_(False)
    model.null = null_of(record)
    model.made_from = record.get("made_from", {})
    model.path, model.digest = str(path), file_digest(path)
    return model


def null_entries(null: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return null conditions by the names that they have in a checkpoint's record of its model, and in a pack."""
    return {f"{NULL}{name}": value for name, value in null.items()}


def null_of(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the null conditions that are among the entries of a record or a pack."""
    return {name.removeprefix(NULL): value for name, value in entries.items() if name.startswith(NULL)}


def _from_folder(folder: Path, variant: str | None) -> Model:
    """Load a pipeline's folder, or a network's folder with the scheduler's beside it."""
    whole = (folder / "model_index.json").is_file()
    root, unet = (folder, folder / "unet") if whole else (folder.parent, folder)
    config = _read_config(unet / "config.json")
    kind = family(str(unet / "config.json"), config)
    network = _read_network(unet, kind, _variant(unet, variant))
    scheduler = _read_config(root / "scheduler" / "scheduler_config.json")
    # Training's process is the schedule of betas; the steps are those of DDPM, which every schedule of betas has.
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    schedule = {name: scheduler[name] for name in names if name in scheduler} | {"clip_sample": False}
    denoiser = kind(network)
    return Model(
        denoiser=denoiser,
        process=Diffusion(schedule),
        null=denoiser.null(CLIPText(str(root), pipeline=True).encode) if whole else {},
        configs={"denoiser": config, "scheduler": schedule},
        path=str(folder),
        digest=file_digest(folder) if whole else joined_digest([folder, root / "scheduler"]),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, expected the folder of a diffusers pipeline or of its unet") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: found a {type(config).__name__}, expected a config")
    return config


def _variant(folder: Path, variant: str | None) -> str | None:
    """Return the variant to load; without one asked for, the only one where there are no plain weights."""
    if variant is not None or any(folder.glob(f"{WEIGHTS}.safetensors*")):
        return variant
    found = {path.name.split(".")[1].split("-")[0] for path in folder.glob(f"{WEIGHTS}.*.safetensors*")}
    if len(found) > 1:
        raise UserError(f"{folder}: found variants {', '.join(sorted(found))}, expected variant to name one of them")
    return next(iter(found), None)


def _read_network(folder: Path, kind: type[Denoiser], variant: str | None) -> nn.Module:
    """Read a network from safetensors files alone, which cannot run code; every weight must be there."""
    try:
        network, loading = getattr(diffusers, kind.class_name).from_pretrained(
            str(folder), variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True,
            torch_dtype=torch.float32, low_cpu_mem_usage=False,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: expected safetensors weights of {kind.class_name}: {one_line(error)}") from error
    for what, none in (("missing_keys", "no"), ("unexpected_keys", "an unknown")):
        if names := loading.get(what):
            raise UserError(f"{folder}: found {none} weight {sorted(names)[0]}, expected those of its config")
    assert isinstance(network, nn.Module)
    return network.eval().requires_grad_(False)


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
