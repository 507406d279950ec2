"""Fisher approximations: fit, save, load, apply the inverse."""

from lightning_attr.curvature.damping import Damping
from lightning_attr.curvature.diagonal import DiagonalCurvature, squared_sums
from lightning_attr.curvature.files import AnyCurvature, curvature_digest, load_curvature
from lightning_attr.curvature.kronecker import KroneckerCurvature
from lightning_attr.curvature.kronfluence_layout import save_factors

__all__ = [
    "AnyCurvature",
    "Damping",
    "DiagonalCurvature",
    "KroneckerCurvature",
    "curvature_digest",
    "load_curvature",
    "save_factors",
    "squared_sums",
]
