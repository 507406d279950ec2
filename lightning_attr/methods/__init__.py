"""Attribution methods: each gives scores [queries, samples], higher = more influential."""

from lightning_attr.methods.attribute import attribute
from lightning_attr.methods.base import Context, Method
from lightning_attr.methods.combined import Combined
from lightning_attr.methods.d_trak import DTrak
from lightning_attr.methods.directed import Directed
from lightning_attr.methods.exact_influence import ExactInfluence
from lightning_attr.methods.gradient_similarity import GradientSimilarity
from lightning_attr.methods.influence import Influence
from lightning_attr.methods.journey_trak import JourneyTrak
from lightning_attr.methods.learned import Learned
from lightning_attr.methods.measured import Measured
from lightning_attr.methods.mucs import Mucs
from lightning_attr.methods.random import Random
from lightning_attr.methods.similarity import Similarity, TunedSimilarity, VisionSimilarity
from lightning_attr.methods.trak import Trak
from lightning_attr.methods.unlearning import Unlearning

__all__ = [
    "Combined",
    "Context",
    "DTrak",
    "Directed",
    "ExactInfluence",
    "GradientSimilarity",
    "Influence",
    "JourneyTrak",
    "Learned",
    "Measured",
    "Method",
    "Mucs",
    "Random",
    "Similarity",
    "Trak",
    "TunedSimilarity",
    "Unlearning",
    "VisionSimilarity",
    "attribute",
]
