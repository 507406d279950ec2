"""Load a model: from our own checkpoint, from a folder of diffusers, or by a model spec."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from lightning_attr.adapters import read_adapter
from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.console import command
from lightning_attr.digests import file_digest
from lightning_attr.encoders import PipelineText
from lightning_attr.errors import UserError, one_line
from lightning_attr.models.denoiser import Denoiser
from lightning_attr.models.families import family, unfilled
from lightning_attr.models.finetune import BESIDE, restored
from lightning_attr.models.model import Later, Model
from lightning_attr.models.objective import read_objective
from lightning_attr.models.process import Process
from lightning_attr.models.spec import Spec, named_digest, read_spec
from lightning_attr.weight_files import check_config, check_finite, check_weights, found_instead, variant_of

#: Before the name of a null condition in what is written of a model.
NULL = "null_"

#: The parts of a pipeline that a text-to-image model of ours is made of, and those that do not change its images.
PARTS = (
    "unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
    "tokenizer_3", "scheduler", "safety_checker", "feature_extractor",
)  # fmt: skip

#: The folders of a pipeline that its network may lie in.
NETWORKS = ("unet", "transformer")

#: Parts of names of models that were distilled to few steps: no loss that they were trained with is one of ours.
DISTILLED = ("turbo", "lightning", "schnell", "lcm", "hyper")


def load(path: str | Path, variant: str | None = None) -> Model:
    """Load a model, frozen and in evaluation mode.

    Args:
        path: A checkpoint of ``LatentDiffusion`` (where an average was kept, it is the average), a folder of a
            diffusers pipeline, its ``unet`` folder, or a model spec (:mod:`lightning_attr.models.spec`), which may lay
            an adapter over one of them. Of a ``unet`` folder alone the null conditions are not known. A model in one
            file is unpacked before (:mod:`lightning_attr.models.single_file`).
        variant: Which weights of a folder, such as ``fp16``. None is the plain ones, or the only variant that is there.

    Raises:
        UserError: It is none of these, damaged, or of a family that is not known.
    """
    if Path(path).suffix == ".yaml":
        return _from_spec(path)
    if Path(path).suffix == ".safetensors":
        raise UserError(
            f"{path}: found a model in one file, expected a folder; make one: "
            f"{command('prepare', 'model', path, '--like', 'FOLDER', '--out', Path(path).with_suffix(''))}"
        )
    return _from_folder(Path(path), variant) if Path(path).is_dir() else _from_checkpoint(path)


def _from_spec(path: str | Path) -> Model:
    """Load what a spec names, and lay its adapter over it."""
    spec = read_spec(path)
    model = load(spec.model, spec.variant)
    if spec.adapter is not None:
        # What the base was trained on is not what the adapter was; the encoders are the same.
        model.made_from = {name: digest for name, digest in model.made_from.items() if name == "encoders"}
        model.made_from |= {"base": model.digest}
        if model.denoiser.adapter:
            raise UserError(f"{path}: model: found a model with an adapter, expected a base for {spec.adapter}")
        adapter = read_adapter(spec.adapter, model.denoiser.class_name, model.configs["denoiser"], spec.alpha)
        model = model.with_adapter(adapter.into_network(model.network))
        if (digest := adapter.text_digest) is not None:
            model.null = Later(lambda: model.denoiser.null(_texts_of(path, spec)))
            model.text_adapter = digest
    if given := spec.objective.given:
        model = replace(
            model, objective=replace(model.objective, **given), configs={**model.configs, "objective": given}
        )
    model.path, model.digest = str(path), file_digest(path)
    return model


def _texts_of(path: str | Path, spec: Spec) -> PipelineText:
    """Return the text encoders of a spec's pipeline, with what its adapter lays over them."""
    if not (spec.model / "model_index.json").is_file():
        raise UserError(
            f"{path}: model: found {spec.model}, which is no pipeline and has no text encoders for {spec.adapter} to "
            "change; name the pipeline's folder, or sample without guidance (1)"
        )
    return PipelineText(str(spec.model), adapter=str(spec.adapter), alpha=spec.alpha)


def _from_checkpoint(path: str | Path) -> Model:
    where, checkpoint = f"checkpoint {path}", read_checkpoint(path)
    if "trained_model" not in checkpoint:
        raise UserError(f"{where}: found no denoiser in it, expected a checkpoint of LatentDiffusion")
    record = _mapping(where, "trained_model", checkpoint["trained_model"])
    configs = {name: _mapping(where, f"trained_model.{name}", record.get(name)) for name in ("denoiser", "scheduler")}
    state = _mapping(where, "state_dict", checkpoint.get("state_dict"))
    weights = {name.removeprefix("denoiser."): value for name, value in state.items()}
    given = _mapping(where, "trained_model.objective", record.get("objective", {}))
    try:
        objective = read_objective("trained_model.objective", given)
        if "base" in record:
            _mapping(where, "trained_model.base", record["base"])
            model = replace(_fine_tuned(Path(path), checkpoint, weights), objective=objective)
            model.configs = {**model.configs, **({"objective": given} if given else {})}
        else:
            model = unfilled(**configs, objective=objective)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if "base" not in record:
        load_weights(model.network, weights, path)
        model.network.eval().requires_grad_(False)
    model.null = null_of(record)
    model.made_from = _mapping(where, "trained_model.made_from", record.get("made_from", {}))
    try:
        model.denoiser.check_null(model.null)
    except UserError as error:
        raise UserError(f"{where}: trained_model.{NULL}{error}") from error
    model.path, model.digest = str(path), file_digest(path)
    return model


def _fine_tuned(path: Path, checkpoint: Mapping[str, Any], weights: Mapping[str, Any]) -> Model:
    """Load the base of a checkpoint that holds an adapter's weights alone, and lay them over it."""
    record = checkpoint["trained_model"]["base"]
    _check_plain(weights)
    place = _place_of_base(path, checkpoint)
    base = load(place)
    if base.digest != record.get("digest"):
        raise UserError(f"base {place}: found digest {base.digest}, expected {record.get('digest')}")
    try:
        model = restored(record, weights, base)
    except (TypeError, KeyError) as error:  # of settings that are none
        raise UserError(f"trained_model.base.adapter: expected settings of an adapter: {one_line(error)}") from error
    model.base, model.configs = str(place), {**base.configs, "base": record}
    return model


def _place_of_base(path: Path, checkpoint: Mapping[str, Any]) -> Path:
    known = [Path(str(checkpoint.get("base", ""))), path.parent / BESIDE]
    place = next((each for each in known if str(each) != "." and each.exists()), None)
    if place is None:
        raise UserError(
            f"found no base at {known[0]}, expected the model that it was fine-tuned from; put it, or a link "
            f"to it, at {known[1]}"
        )
    return place


def place_of_base(path: str | Path) -> Path:
    """Return where the model lies that a checkpoint was fine-tuned from.

    Raises:
        UserError: It is not there, or the model was trained from scratch.
    """
    checkpoint = read_checkpoint(path)
    if "base" not in checkpoint:
        raise UserError(f"checkpoint {path}: found a model that was trained from scratch, expected a fine-tuned one")
    try:
        return _place_of_base(Path(path), checkpoint)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error


def _check_plain(weights: Mapping[str, Any]) -> None:
    for name, value in weights.items():
        if (instead := found_instead(value)) is not None:
            raise UserError(f"{name}: found {instead}, expected a plain floating-point tensor")


def _mapping(where: str, key: str, value: Any) -> Mapping[str, Any]:
    """Return a part of a checkpoint that must be a mapping with names."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        found = type(value).__name__ if not isinstance(value, Mapping) else "keys that are no names"
        raise UserError(f"{where}: {key}: found {found}, expected a mapping with names")
    return value


def null_entries(null: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return null conditions by the names that they have in a checkpoint's record of its model, and in a pack."""
    return {f"{NULL}{name}": value for name, value in null.items()}


def null_of(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the null conditions that are among the entries of a record or a pack."""
    return {name.removeprefix(NULL): value for name, value in entries.items() if name.startswith(NULL)}


def _from_folder(folder: Path, variant: str | None) -> Model:
    """Load a pipeline's folder, or a network's folder with the scheduler's beside it."""
    index = folder / "model_index.json"
    whole = index.is_file()
    root, network = (folder, network_of(folder)) if whole else (folder.parent, folder)
    config = _read_config(network / "config.json")
    kind = family(str(network / "config.json"), config)
    if whole:
        _check_pipeline(index, kind)
    check_config(network / "config.json", config)
    denoiser = kind(_read_network(network, kind, variant))
    process, scheduler = _process(root / "scheduler" / "scheduler_config.json", kind)
    return Model(
        denoiser=denoiser,
        process=process,
        null=Later(lambda: denoiser.null(PipelineText(str(root)))) if whole else {},
        configs={"denoiser": config, "scheduler": scheduler},
        path=str(folder),
        digest=named_digest(folder),
    )


def network_of(folder: Path) -> Path:
    """Return the folder of a pipeline's network."""
    return next((folder / name for name in NETWORKS if (folder / name).is_dir()), folder / NETWORKS[0])


def _check_pipeline(index: Path, kind: type[Denoiser]) -> None:
    """Refuse a pipeline that calls its network otherwise than we do, or has more parts, or was distilled."""
    config = _read_config(index)
    listed = {name: part[-1] for name, part in config.items() if isinstance(part, list) and part}
    if others := sorted(name for name, part in listed.items() if part is not None and name not in PARTS):
        raise UserError(f"{index}: found a pipeline with {', '.join(others)}, expected none but {', '.join(PARTS)}")
    if (name := config.get("_class_name")) is not None and name not in kind.pipelines:
        raise UserError(f"{index}: found {name}, expected {' or '.join(kind.pipelines)}")
    if config.get("requires_aesthetics_score"):
        raise UserError(f"{index}: found requires_aesthetics_score, expected a base model: this is a refiner")
    origin = str(config.get("_name_or_path", "")).lower()
    if found := next((word for word in DISTILLED if word in origin.rpartition("/")[2]), None):
        raise UserError(
            f"{index}: found a model that comes from {origin}, expected none of a {found} model: it was distilled, and "
            "no loss of its training is known"
        )


def _process(path: Path, kind: type[Denoiser]) -> tuple[Process, dict[str, Any]]:
    """Return the process that a folder's scheduler is of, and the scheduler's settings.

    Raises:
        UserError: The scheduler is of another process than the network.
    """
    config = _arguments(_read_config(path))
    try:
        return kind.process(config), config
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a scheduler takes of its config: files of diffusers keep what other schedulers left in them."""
    cls = getattr(diffusers, str(config.get("_class_name", "DDPMScheduler")), None)
    known = inspect.signature(cls.__init__).parameters if inspect.isclass(cls) else {}
    return {name: value for name, value in config.items() if name in known or name == "_class_name"}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, expected the folder of a diffusers pipeline or of its unet") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({one_line(error)})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: found a {type(config).__name__}, expected a config")
    return config


def _read_network(folder: Path, kind: type[Denoiser], variant: str | None) -> nn.Module:
    """Read a network from safetensors files alone, which cannot run code; every weight must be there."""
    variant = variant_of(folder, "diffusion_pytorch_model", variant)
    try:
        network, loading = getattr(diffusers, kind.class_name).from_pretrained(
            str(folder), variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True,
            torch_dtype=torch.float32, low_cpu_mem_usage=False,
        )  # fmt: skip
    # What its constructor makes of a config that does not fit is its own.
    except Exception as error:
        raise UserError(f"{folder}: expected safetensors weights of {kind.class_name}: {one_line(error)}") from error
    assert isinstance(network, nn.Module)
    check_weights(folder, network, loading)
    return network.float().eval().requires_grad_(False)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load ``weights`` into ``network``, all of them and no others; they become its own, in float32.

    Args:
        network: Of any device, ``meta`` included.
        weights: By name.
        source: The checkpoint, for messages.

    Raises:
        UserError: They are no plain floating-point tensors, not finite, or names or shapes differ: it is a checkpoint
            of another architecture.
    """
    try:
        _check_plain(weights)
    except UserError as error:
        raise UserError(f"checkpoint {source}: {error}") from error
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != expected:
        name = next(name for name in {**expected, **found} if found.get(name) != expected.get(name))
        raise UserError(
            f"checkpoint {source}: of another architecture: found {name} {found.get(name, 'missing')}, "
            f"expected {expected.get(name, 'none')}"
        )
    network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    check_finite(f"checkpoint {source}", network)
