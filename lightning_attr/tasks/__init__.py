"""The LightningModules: each is a stage that ``lightning-attr`` runs from a config."""

from lightning_attr.tasks.attribution import Attribution
from lightning_attr.tasks.curvature import Curvature
from lightning_attr.tasks.evaluation import Evaluation
from lightning_attr.tasks.grouped import GroupedLeaveKOut
from lightning_attr.tasks.latent_diffusion import LatentDiffusion
from lightning_attr.tasks.leave_k_out import LeaveKOut
from lightning_attr.tasks.mirrored_unlearning import MirroredUnlearning
from lightning_attr.tasks.sampler import Sampler
from lightning_attr.tasks.unlearning import Unlearning

__all__ = [
    "Attribution",
    "Curvature",
    "Evaluation",
    "GroupedLeaveKOut",
    "LatentDiffusion",
    "LeaveKOut",
    "MirroredUnlearning",
    "Sampler",
    "Unlearning",
]
