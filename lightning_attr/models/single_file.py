"""Models that lie in one file, as others than diffusers keep them: unpacked once into the folder of a pipeline."""

from __future__ import annotations

import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lightning_attr.artifacts import read_config
from lightning_attr.errors import UserError, one_line, shortened
from lightning_attr.models.families import family
from lightning_attr.models.load import load, network_of

#: Files of weights, which configs are read without.
WEIGHTS = ("*.safetensors", "*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack", "*.h5", "*.onnx", "*.gguf")

#: How the names of the weights of autoencoders and text encoders begin in such files.
OTHER_PARTS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.", "text_encoder.")


def unpack(file: Path, like: Path, out: Path) -> None:
    """Write the folder of a pipeline that a file holds, by the converters of diffusers, and nothing from elsewhere.

    Args:
        file: A ``.safetensors``, of a whole model or of its network alone; the other parts are then copied.
        like: The folder of a pipeline of the same family: its configs are taken, and of the file's nothing is guessed.
        out: The folder to make; it is there as a whole or not at all.

    Raises:
        UserError: The file is none, or holds other weights than the configs ask for, or only some of the other parts;
            or the pipeline is none that we load.
    """
    config = read_config(network_of(like) / "config.json")
    kind, index = family(str(network_of(like) / "config.json"), config), read_config(like / "model_index.json")
    if index.get("_class_name") not in kind.pipelines:
        found = shortened(str(index.get("_class_name")), 80)
        raise UserError(f"{like}: found a pipeline of class {found}, expected {' or '.join(kind.pipelines)}")
    whole = any(name.startswith(OTHER_PARTS) for name in _names(file))
    if find_spec("accelerate") is None:  # without it the converters draw at random what the file lacks
        raise UserError(f"{file}: accelerate is not installed; install it with: pip install 'lightning-attr[hf]'")
    diffusers: Any = import_module("diffusers")
    if not hasattr(getattr(diffusers, kind.class_name), "from_single_file"):
        found = f"{file}: found a model in one file for {kind.class_name}, which diffusers has no converter for"
        raise UserError(f"{found}, expected the folder of a pipeline")
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        configs, made = Path(scratch, "configs"), Path(scratch, "made")
        shutil.copytree(like, configs, ignore=shutil.ignore_patterns(*WEIGHTS))
        given = {"config": str(configs), "local_files_only": True, "torch_dtype": torch.float32}
        try:
            if whole:
                pipeline = getattr(diffusers, index["_class_name"]).from_single_file(str(file), **given)
                parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
            else:
                network = getattr(diffusers, kind.class_name)
                subfolder = network_of(configs).name
                parts = {subfolder: network.from_single_file(str(file), subfolder=subfolder, **given)}
        except Exception as error:  # what the converters make of a file that does not fit is their own
            raise UserError(f"{file}: found no {kind.class_name} like {like} in it: {one_line(error)}") from error
        for name, part in parts.items():
            _check_filled(file, name, part)
        if whole:
            pipeline.save_pretrained(made)
        else:
            shutil.copytree(like, made, ignore=lambda folder, names: _weights_in(folder, names, like / subfolder))
            parts[subfolder].save_pretrained(made / subfolder)  # type: ignore[operator]
        load(made)
        made.rename(out)


def _names(file: Path) -> list[str]:
    """Return the names of the weights in a file."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: found another file, expected a .safetensors: other files of weights could run code")
    try:
        with safe_open(str(file), "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: expected a .safetensors file: {one_line(error)}") from error


def _check_filled(file: Path, name: str, part: nn.Module) -> None:
    """Check that every weight came from the file: the converters leave out what is missing."""
    numbers = [*part.named_parameters(), *part.named_buffers()]
    if missing := next((weight for weight, value in numbers if value.is_meta), None):
        raise UserError(f"{file}: found no weight {missing} of its {name}, expected all that its config asks for")


def _weights_in(folder: str, names: list[str], network: Path) -> set[str]:
    """Return which files of a folder not to copy: of the network's, the weights."""
    return set(shutil.ignore_patterns(*WEIGHTS, "*.index*.json")(folder, names)) if Path(folder) == network else set()
