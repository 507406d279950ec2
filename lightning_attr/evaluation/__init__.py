"""Check attributions against a pack, with an interval on whatever is compared.

LDS compares scores with models retrained on random subsets. Leave-K-out compares the models that the sweep retrained
without the top of each method.
"""

from lightning_attr.evaluation.evaluate import evaluate
from lightning_attr.evaluation.matching import read_scores
from lightning_attr.evaluation.records import Evaluated, as_json
from lightning_attr.evaluation.views import figures, scalars

__all__ = ["Evaluated", "as_json", "evaluate", "figures", "read_scores", "scalars"]
