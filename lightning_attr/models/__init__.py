"""The model as an object: a denoiser, its process, its conditions, and where it came from."""

from lightning_attr.models.denoiser import Conditions, Denoiser
from lightning_attr.models.load import load, load_weights
from lightning_attr.models.model import FAMILIES, Inputs, Model, build, mean_square
from lightning_attr.models.process import Diffusion

__all__ = [
    "FAMILIES",
    "Conditions",
    "Denoiser",
    "Diffusion",
    "Inputs",
    "Model",
    "build",
    "load",
    "load_weights",
    "mean_square",
]
