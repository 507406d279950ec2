"""The LightningModules: each is a stage that ``lightning-attr`` runs from a config."""

from typing import Any

from lightning_attr.artifacts.before import CLASSES
from lightning_attr.tasks.attribution import Attribution
from lightning_attr.tasks.curvature import Curvature
from lightning_attr.tasks.evaluation import Evaluation
from lightning_attr.tasks.grouped import GroupedRetraining
from lightning_attr.tasks.latent_diffusion import LatentDiffusion
from lightning_attr.tasks.mirrored_unlearning import MirroredUnlearning
from lightning_attr.tasks.replayed_steps import ReplayedSteps
from lightning_attr.tasks.retraining import Retraining
from lightning_attr.tasks.sampler import Sampler
from lightning_attr.tasks.tuned_features import TunedFeatures
from lightning_attr.tasks.unlearning import Unlearning
from lightning_attr.tasks.virtual_steps import VirtualSteps

__all__ = [
    "Attribution",
    "Curvature",
    "Evaluation",
    "GroupedRetraining",
    "LatentDiffusion",
    "MirroredUnlearning",
    "ReplayedSteps",
    "Retraining",
    "Sampler",
    "TunedFeatures",
    "Unlearning",
    "VirtualSteps",
]


def __getattr__(name: str) -> Any:
    """Return a class that configs of before call otherwise: a sweep that was half done then goes on."""
    if (now := CLASSES.get(f"{__name__}.{name}")) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[now.rpartition(".")[2]]
