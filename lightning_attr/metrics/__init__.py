"""How good is an attribution? Pure functions (``functional``) and the torchmetrics shells around them."""

from lightning_attr.metrics.figures import LossChangePoint, loss_change_figure
from lightning_attr.metrics.per_query import PerQuery, Summary, summarise
from lightning_attr.metrics.ranking import MeanAveragePrecision, RecallAtK
from lightning_attr.metrics.retraining import GenerationDeviation, LinearDatamodellingScore, LossChange

__all__ = [
    "GenerationDeviation",
    "LinearDatamodellingScore",
    "LossChange",
    "LossChangePoint",
    "MeanAveragePrecision",
    "PerQuery",
    "RecallAtK",
    "Summary",
    "loss_change_figure",
    "summarise",
]
