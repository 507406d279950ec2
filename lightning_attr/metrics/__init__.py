"""How good is an attribution? Pure functions (``functional``) and the torchmetrics shells around them."""

from lightning_attr.metrics.bootstrap import Interval
from lightning_attr.metrics.figures import LossChangePoint, lds_figure, loss_change_figure, prediction_figure
from lightning_attr.metrics.ground_truth import Variances, attributability, lds_ceiling, variance_components
from lightning_attr.metrics.intervals import difference_interval, lds_difference_interval, lds_interval, mean_interval
from lightning_attr.metrics.per_query import PerQuery, Summary, summarise
from lightning_attr.metrics.ranking import MeanAveragePrecision, RecallAtK
from lightning_attr.metrics.retraining import GenerationDeviation, LinearDatamodellingScore, LossChange

__all__ = [
    "GenerationDeviation",
    "Interval",
    "LinearDatamodellingScore",
    "LossChange",
    "LossChangePoint",
    "MeanAveragePrecision",
    "PerQuery",
    "RecallAtK",
    "Summary",
    "Variances",
    "attributability",
    "difference_interval",
    "lds_ceiling",
    "lds_difference_interval",
    "lds_figure",
    "lds_interval",
    "loss_change_figure",
    "mean_interval",
    "prediction_figure",
    "summarise",
    "variance_components",
]
