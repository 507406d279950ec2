"""Fisher approximations: fit, save, load, apply the inverse."""

from lightning_attr.curvature.diagonal import Damping, DiagonalCurvature, squared_sums

__all__ = ["Damping", "DiagonalCurvature", "squared_sums"]
