"""The model as an object: a denoiser, its process, its conditions, and where it came from."""

from lightning_attr.models.denoiser import Conditions, Denoiser
from lightning_attr.models.families import FAMILIES, build
from lightning_attr.models.load import load, load_weights
from lightning_attr.models.model import Inputs, Model, mean_square
from lightning_attr.models.objective import Objective
from lightning_attr.models.process import Diffusion, FlowMatching

__all__ = [
    "FAMILIES",
    "Conditions",
    "Denoiser",
    "Diffusion",
    "FlowMatching",
    "Inputs",
    "Model",
    "Objective",
    "build",
    "load",
    "load_weights",
    "mean_square",
]
