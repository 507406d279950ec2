"""Is it right? Metrics, the pack of a sweep, and the evaluation of scores against it, with an interval on every mean.

LDS compares scores with models retrained on random subsets. Leave-K-out compares the models that the sweep retrained
without the top of each method.
"""

from lightning_attr.ground_truth.evaluate import evaluate
from lightning_attr.ground_truth.matching import read_scores
from lightning_attr.ground_truth.pack import UNATTRIBUTED, Model, Pack, pack_files, unpack
from lightning_attr.ground_truth.packing import collect
from lightning_attr.ground_truth.records import Evaluated, as_json

__all__ = [
    "UNATTRIBUTED",
    "Evaluated",
    "Model",
    "Pack",
    "as_json",
    "collect",
    "evaluate",
    "pack_files",
    "read_scores",
    "unpack",
]
