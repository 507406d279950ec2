"""Attribution of many queries, against what else one could do and against peers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from tools.benchmark import device, features, growth, one_pass, pairwise
from tools.benchmark.timing import Figure, Sizes


def measure(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Measure all on the CPU; with a GPU, how fast that is as well."""
    for part in (one_pass, pairwise, features, growth):
        place = folder / part.__name__.rpartition(".")[2]
        place.mkdir()
        yield from part.measure(place, sizes)
    if torch.cuda.is_available():
        yield from device.measure(torch.device("cuda"))
