"""What an answer will take, from the speed and the memory of this machine: measured, not known beforehand.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_attr.commands.explain.plan import PASSES
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output, draw_gradients
from lightning_attr.models import Model
from lightning_attr.noise import Draws

#: The largest batch that is tried.
LARGEST = 64
#: Seconds after which no larger batch is tried.
PATIENCE = 20.0
#: A larger batch must be so much faster to be taken: it costs memory.
GAIN = 1.05
#: Bytes of a number of a gradient, and of one in a store.
FLOAT, HALF = 4, 2
#: Bytes of a thumbnail, about.
THUMB = 4000
#: Tokens of a text, where a network takes any number.
TOKENS = 77


@dataclass(frozen=True)
class Speed:
    """How fast gradients are taken.

    Attributes:
        batch_size: Samples taken at once.
        seconds: Of one sample at one draw.
        gradients: Bytes of the gradients of one sample or query at one draw.
        sample: Bytes of a sample in a store.
    """

    batch_size: int
    seconds: float
    gradients: int
    sample: int


@dataclass(frozen=True)
class Estimate:
    """What an answer takes.

    Attributes:
        seconds: Of each stage by name.
        memory: Bytes held at most, beside the model.
        free: Bytes that are free on the device.
        disk: Bytes of what is kept.
    """

    seconds: Mapping[str, float]
    memory: int
    free: int
    disk: int


def measured(model: Model, weights: str, batch_size: int | None = None) -> Speed:
    """Take gradients of random samples, of more and more at once as long as that pays and memory allows.

    Args:
        model: On the device where it will be asked.
        weights: Which weights are looked at.
        batch_size: The one to take; None finds it.

    Raises:
        UserError: Not even one sample fits.
    """
    selected = model.select(weights)
    gradients = sum(weight.numel() for weight in selected.values()) * FLOAT
    numbers = math.prod(model.latent_shape) + sum(map(math.prod, _shapes(model).values()))
    free = free_memory(next(model.network.parameters()).device)
    tried: dict[int, float] = {}
    number, begun = batch_size or 1, time.perf_counter()
    while number <= (batch_size or LARGEST) and number * gradients <= free // 4:
        try:
            # The first pass of a shape is slow, and another process may come between.
            tried[number] = min(_seconds(model, selected, number) for _ in range(3)) / number
        except torch.OutOfMemoryError:
            break
        if time.perf_counter() - begun > PATIENCE:
            break
        number *= 2
    if not tried:
        raise UserError(
            f"weights: found {gradients / 1e9:.1f} GB of gradients of a sample and {free / 1e9:.1f} GB free, expected "
            "fewer weights, such as --weights cross_kv"
        )
    best = min(number for number, seconds in tried.items() if seconds <= GAIN * min(tried.values()))
    return Speed(best, tried[best], gradients, HALF * numbers + THUMB)


def estimated(speed: Speed, samples: int, showings: int, queries: int, draws: int, free: int) -> Estimate:
    """Return what an answer takes.

    Args:
        speed: Of this machine.
        samples: Training images.
        showings: How often training shows them in all in an epoch.
        queries: Outputs that are asked about.
        draws: Timesteps at which gradients are taken.
        free: Bytes that are free.
    """
    seconds = {"curvature": 2 * PASSES * showings * speed.seconds, "influence": draws * samples * speed.seconds}
    # Of a sample the mean over draws is held, and the gradient at one of them.
    held = (queries + 2 * speed.batch_size) * speed.gradients
    # The curvature keeps two factors for each weight and the eigenvalues: about three times the weights.
    disk = samples * speed.sample + 3 * speed.gradients + FLOAT * samples * queries
    return Estimate(seconds, held, free, disk)


def check_fits(estimate: Estimate, queries: int) -> None:
    """Refuse what would not fit into memory, before anything is run.

    Args:
        estimate: What it takes.
        queries: How many there are.

    Raises:
        UserError: It would not; the message names a smaller setting.
    """
    if estimate.memory > estimate.free:
        fewer = max(1, int(queries * estimate.free / estimate.memory * 0.9))
        raise UserError(
            f"memory: found {estimate.free / 1e9:.1f} GB free, expected {estimate.memory / 1e9:.1f} GB for gradients "
            f"of the queries; give {fewer} at once, or fewer weights, such as --weights cross_kv"
        )


def _seconds(model: Model, selected: Mapping[str, nn.Parameter], number: int) -> float:
    """Return how long the gradients of so many random samples take at one draw."""
    device = next(model.network.parameters()).device
    batch: dict[str, Tensor] = {
        "latent": torch.randn(number, 1, *model.latent_shape, device=device),
        "captions": torch.ones(number, dtype=torch.int64, device=device),
        "id": torch.arange(number, device=device),
        **{name: torch.zeros(number, 1, *shape, device=device) for name, shape in _shapes(model).items()},
    }
    start = time.perf_counter()
    for gradients in draw_gradients(model, selected, batch, Output(draws=Draws(timesteps=1))):
        for _, gradient in gradients.named():
            gradient.sum()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _shapes(model: Model) -> dict[str, list[int]]:
    """Return the shapes of the conditions of one sample."""
    shapes = model.denoiser.conditions
    return {name: [TOKENS if size is None else size for size in shape] for name, shape in shapes.items()}


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, as far as the limits of this process let it have them."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    free = int(found[1]) * 1024 if found else 8 * 2**30
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    return min(free, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else free


def _read(path: str) -> str:
    """Return a file of the system; nothing where this system has it not."""
    return Path(path).read_text() if Path(path).is_file() else ""
