"""How good is an attribution? Pure functions (``functional``) and the torchmetrics shells around them."""

from lightning_attr.ground_truth.metrics.bootstrap import Interval
from lightning_attr.ground_truth.metrics.calibration import (
    Calibration,
    Reliability,
    calibration_error,
    reliability_bins,
)
from lightning_attr.ground_truth.metrics.exemplars import (
    Ranks,
    all_tied,
    exemplar_ranks,
    expected_average_precision,
    expected_recall,
)
from lightning_attr.ground_truth.metrics.groups import Top1
from lightning_attr.ground_truth.metrics.intervals import (
    difference_interval,
    lds_difference_interval,
    lds_interval,
    mean_interval,
)
from lightning_attr.ground_truth.metrics.per_query import Given, PerQuery, Summary, summarise
from lightning_attr.ground_truth.metrics.ranking import MeanAveragePrecision, RecallAtK
from lightning_attr.ground_truth.metrics.reliability import (
    Variances,
    attributability,
    lds_ceiling,
    variance_components,
)
from lightning_attr.ground_truth.metrics.retraining import GenerationDeviation, LinearDatamodellingScore, LossChange

__all__ = [
    "Calibration",
    "GenerationDeviation",
    "Given",
    "Interval",
    "LinearDatamodellingScore",
    "LossChange",
    "MeanAveragePrecision",
    "PerQuery",
    "Ranks",
    "RecallAtK",
    "Reliability",
    "Summary",
    "Top1",
    "Variances",
    "all_tied",
    "attributability",
    "calibration_error",
    "difference_interval",
    "exemplar_ranks",
    "expected_average_precision",
    "expected_recall",
    "lds_ceiling",
    "lds_difference_interval",
    "lds_interval",
    "mean_interval",
    "reliability_bins",
    "summarise",
    "variance_components",
]
