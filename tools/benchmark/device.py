"""How fast an accelerator scores samples for 110 queries by the network of the MSCOCO experiment, and how faithfully.

In float32 and under bfloat16 autocast, as ``--trainer.precision bf16-mixed`` runs it, each with and without
``torch.compile``. Weights are random: speed does not ask, but the rank correlation of bfloat16 with float32 is to be
checked on a trained network as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_attr.ground_truth.metrics.functional import rank_correlation
from lightning_attr.methods.base import Batch
from tools.benchmark.case import TOKENS, Case, build_case, mscoco_config
from tools.benchmark.one_pass import influence
from tools.benchmark.timing import Figure, Spread

MSCOCO_SAMPLES = 118_287
MSCOCO_TIMESTEPS = 20
"""One caption and one view of every sample at each of them."""


@dataclass(frozen=True)
class Load:
    """How much is measured.

    Args:
        case: Network, samples, queries and draws.
        batch: Samples in a batch.
        matrix: Side of the matrices whose product gives the peak.
        repeats: Measurements of each.
        backend: Of ``torch.compile``.
    """

    case: Case
    batch: int = 256
    matrix: int = 8192
    repeats: int = 5
    backend: str = "inductor"


def measure(device: torch.device) -> Iterator[Figure]:
    """Measure the network of the MSCOCO experiment at its own size."""
    case = build_case(samples=1024, queries=110, timesteps=2, config=mscoco_config(), tokens=TOKENS)
    yield from figures(Load(case), device)


def figures(load: Load, device: torch.device) -> Iterator[Figure]:
    """Yield speed, share of the peak of matrix products, hours for MSCOCO, and agreement with float32."""
    scores: dict[str, Tensor] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for compiled in (False, True):
            key = f"device_{name}{'_compiled' if compiled else ''}"
            scorer = Scorer(load, device, dtype, compiled)
            speed = Spread.of([scorer.samples_per_second() for _ in range(load.repeats)])
            scores.setdefault(name, scorer.scores)
            yield Figure(f"{key}_samples_per_s", speed, f"samples at one draw; {name}")
            share = speed.median * scorer.operations() / _matmul_peak(load, device, dtype)
            yield Figure(f"{key}_peak_share", Spread.of([share]), f"of the speed of a product of {name} matrices")
            minutes = MSCOCO_SAMPLES * MSCOCO_TIMESTEPS / speed.median / 60
            limit = f"{len(load.case.queries['id'])} queries over MSCOCO, {MSCOCO_TIMESTEPS} timesteps, one caption"
            yield Figure(f"{key}_mscoco_minutes", Spread.of([minutes]), limit, 30.0, at_most=True)
    agreement = rank_correlation(scores["bf16"], scores["fp32"])
    yield Figure("device_bf16_spearman", Spread.of(agreement.tolist()), "with float32, over queries", 0.99)


class Scorer:
    """Scores batches for all queries on a device.

    Args:
        load: How much.
        device: Where.
        dtype: Of autocast; float32 is none.
        compiled: Compile the network around the layers whose gradients are taken.
    """

    def __init__(self, load: Load, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
        self.device = device
        self.dtype = dtype
        denoiser = deepcopy(load.case.denoiser).to(device)
        samples, queries = (_moved(batch, device) for batch in (load.case.samples, load.case.queries))
        self.case = replace(load.case, model=load.case.model.over(denoiser), samples=samples, queries=queries)
        if compiled:
            layers = {denoiser.get_submodule(name.rpartition(".")[0]) for name in self.case.selected}
            compile_around(denoiser, layers, load.backend)
        self.batches = list(self.case.batches(load.batch))
        with TemporaryDirectory() as folder:
            # The curvature is the same for all of them: that of the network as it is, on the CPU.
            load.case.ekfac().save(Path(folder) / "curvature.safetensors")
            self.method = influence(Path(folder) / "curvature.safetensors", self.case)
        # As in a run, where autocast begins with the first batch.
        self.method.prepare(self.case.context(len(queries["id"])))
        self.scores = self._pass().T.float().cpu()  # what is compiled is compiled now

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _pass(self) -> Tensor:
        with self._autocast():
            return torch.cat([self.method.measure(batch) for batch in self.batches])

    def samples_per_second(self) -> float:
        """Return how many samples at one draw are scored per second, for all queries."""
        seconds = _seconds(self._pass, self.device)
        return len(self.case.samples["id"]) * len(self.case.draws) / seconds

    def operations(self) -> float:
        """Return the operations of a sample at one draw; those of a batch are counted."""
        batch = self.batches[0]
        counter = FlopCounterMode(display=False)
        with torch.compiler.set_stance("force_eager"), counter, self._autocast():
            self.method.measure(batch)
        return counter.get_total_flops() / len(batch["id"]) / len(self.case.draws)


def compile_around(module: nn.Module, layers: set[nn.Module], backend: str) -> None:
    """Compile the largest parts of a network in which none of ``layers`` lies: hooks on these run between the parts."""
    for child in module.children():
        if not layers.isdisjoint(child.modules()):
            compile_around(child, layers, backend)
        elif any(child.children()) and not isinstance(child, nn.ModuleList):
            child.compile(backend=backend)
        elif isinstance(child, nn.ModuleList):
            compile_around(child, layers, backend)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: value if name == "id" else value.to(device) for name, value in batch.items()}


def _matmul_peak(load: Load, device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of a large product of matrices."""
    a, b = (torch.randn(load.matrix, load.matrix, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * load.matrix**3 / min(_seconds(lambda: a @ b, device) for _ in range(load.repeats))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of some work, until the device is done with it."""
    _wait(device)
    start = perf_counter()
    work()
    _wait(device)
    return perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
