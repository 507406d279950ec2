"""The factors of K-FAC and EK-FAC as kronfluence keeps them: a folder, one safetensors file per kind of factor.

Every file holds one tensor per layer, named as the layer, so a factor that layers share is written once for each. It
has no place for settings: they go into ``curvature.json`` beside, with the digest of every file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lightning_attr.artifacts import read_json, write_atomically, write_json
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.curvature.kronecker import Factor, KroneckerCurvature, LayerCurvature, layer_curvature
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError, one_line

ARGUMENTS = "factor_arguments.json"
SETTINGS = "curvature.json"
FACTORS = ("activation", "gradient")


def save_factors(folder: str | Path, curvature: KroneckerCurvature) -> None:
    """Write the folder; it is there as a whole or not at all.

    Named ``factors_NAME`` in a run's folder, kronfluence's ``Analyzer(analysis_name=RUN, output_dir=PARENT)`` takes it
    for its own under ``factors_name=NAME``.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    if temporary.is_symlink():
        temporary.unlink()
    shutil.rmtree(temporary, ignore_errors=True)
    for name, tensors in _files(curvature).items():
        # safetensors refuses tensors that share memory, as those of a shared factor do.
        flat = {layer: tensor.detach().cpu().contiguous().clone() for layer, tensor in tensors.items()}
        write_atomically(temporary / f"{name}.safetensors", save(flat))
    write_json(temporary / ARGUMENTS, {"strategy": curvature.kind, "use_empirical_fisher": True})
    write_record(temporary / SETTINGS, {"settings": dict(curvature.settings), "files": _digests(temporary)})
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file of factors."""
    return {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}


def factors_digest(folder: str | Path) -> str:
    """Return the digest of all factors in the folder."""
    return xxhash.xxh3_128_hexdigest(json.dumps(_digests(Path(folder))).encode())


def _files(curvature: KroneckerCurvature) -> dict[str, dict[str, Tensor]]:
    """Return all tensors by file and layer; sums over tokens or samples, with their counts, as kronfluence has them."""
    files: dict[str, dict[str, Tensor]] = {}

    def put(file: str, layer: str, tensor: Tensor) -> None:
        files.setdefault(file, {})[layer] = tensor

    for name, layer in curvature.layers.items():
        for kind, factor in zip(FACTORS, (layer.activation, layer.gradient), strict=True):
            put(f"{kind}_covariance", name, (factor.moment() * factor.tokens).float())
            put(f"num_{kind}_covariance_processed", name, torch.tensor([factor.tokens]))
            put(f"{kind}_eigenvectors", name, factor.eigenvectors.float())
            put(f"{kind}_eigenvalues", name, factor.eigenvalues)
        if curvature.kind == "ekfac":
            put("lambda_matrix", name, layer.eigenvalues * layer.samples)
            put("num_lambda_processed", name, torch.tensor([layer.samples]))
    return files


def load_factors(folder: str | Path) -> KroneckerCurvature:
    """Read a folder that :func:`save_factors` or kronfluence wrote.

    Raises:
        UserError: A file is missing, damaged or of another strategy.
    """
    folder = Path(folder)
    kind: Literal["kfac", "ekfac"] = _strategy(folder)
    settings = _checked_settings(folder)
    names = [f"{part}_{what}" for part in FACTORS for what in ("eigenvectors", "eigenvalues")]
    names += [f"num_{part}_covariance_processed" for part in FACTORS]
    names += ["lambda_matrix", "num_lambda_processed"] if kind == "ekfac" else []
    files = {name: _read(folder / f"{name}.safetensors") for name in names}
    layers: dict[str, LayerCurvature] = {}
    for layer in files["activation_eigenvectors"]:
        try:
            layers[layer] = _layer(files, layer, [known.activation for known in layers.values()])
        except KeyError as error:
            raise UserError(f"{folder}: found no {error} for {layer}, expected one in every file") from error
    return KroneckerCurvature(kind, layers, settings)


def _layer(files: dict[str, dict[str, Tensor]], layer: str, known: list[Factor]) -> LayerCurvature:
    activation, gradient = (
        Factor(
            files[f"{part}_eigenvectors"][layer],
            files[f"{part}_eigenvalues"][layer].double().clamp(min=0),
            int(files[f"num_{part}_covariance_processed"][layer]),
        )
        for part in FACTORS
    )
    # Layers that share a factor have equal copies in the file; one of them is enough in memory.
    same = (other for other in known if torch.equal(other.eigenvectors, activation.eigenvectors))
    activation = next(same, activation)
    if "lambda_matrix" not in files:
        return layer_curvature(activation, gradient)
    count = int(files["num_lambda_processed"][layer])
    return layer_curvature(activation, gradient, files["lambda_matrix"][layer].double() / count, count)


def _strategy(folder: Path) -> Literal["kfac", "ekfac"]:
    arguments = read_json(folder / ARGUMENTS)
    strategy = arguments.get("strategy") if isinstance(arguments, dict) else arguments
    if strategy == "kfac":
        return "kfac"
    if strategy == "ekfac":
        return "ekfac"
    raise UserError(f"{folder / ARGUMENTS}: found strategy {strategy!r}, expected kfac or ekfac")


def _checked_settings(folder: Path) -> dict[str, Any]:
    """Return our settings; a folder that kronfluence wrote has none, its files must say which it is."""
    found = _digests(folder)
    if not (folder / SETTINGS).exists():
        return {"files": found}
    written = read_record(folder / SETTINGS, {"files": dict, "settings": dict}, "settings of a curvature")
    for name, digest in written["files"].items():
        if name not in found:
            raise UserError(f"{folder / name}: no such file")
        if found[name] != digest:
            raise UserError(f"{folder / name}: damaged, its checksum does not match {SETTINGS}")
    return dict(written["settings"])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the factors of kronfluence")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({one_line(error)})") from error
