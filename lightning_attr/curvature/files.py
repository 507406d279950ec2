"""Read a curvature of any kind."""

from __future__ import annotations

from pathlib import Path

from lightning_attr.artifacts import load_tensors
from lightning_attr.artifacts.expect import expect_settings
from lightning_attr.curvature.diagonal import DiagonalCurvature
from lightning_attr.curvature.kronecker import KroneckerCurvature
from lightning_attr.curvature.kronfluence_layout import factors_digest, load_factors
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError

AnyCurvature = DiagonalCurvature | KroneckerCurvature


def load_curvature(path: str | Path) -> AnyCurvature:
    """Read a ``curvature.safetensors``, or a folder of factors as kronfluence lays them out.

    Raises:
        UserError: The file is missing, damaged or holds something else.
    """
    if Path(path).is_dir():
        return load_factors(path)
    tensors, settings = load_tensors(path, "curvature")
    expect_settings(str(path), settings, {"kind": str})
    if name := next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None):
        raise UserError(f"{path}: found {name} that is not finite, expected finite numbers")
    if settings["kind"] == "diagonal":
        return DiagonalCurvature(tensors, settings)
    return KroneckerCurvature.from_tensors(str(path), tensors, settings)


def curvature_digest(path: str | Path) -> str:
    """Return the digest of what :func:`load_curvature` reads."""
    return factors_digest(path) if Path(path).is_dir() else file_digest(path)
