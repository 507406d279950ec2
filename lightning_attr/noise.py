"""Draws: the (timestep, noise) pairs at which a loss is measured.

Every random number here is a pure function of a key. It never depends on the batch size, the order, the number of
workers or ranks, or the device, so losses can be cached, sharded, resumed and compared on the same noise.

Shapes: D draws, B samples, C x H x W a latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_attr.errors import UserError, expect_within

Ids = TypeVar("Ids", int, Tensor)

Sampling = Literal["uniform", "logit_normal"]
"""How training draws timesteps, see :func:`random_timesteps`."""


@dataclass(frozen=True)
class Draws:
    """Where on the noise schedule, and with which noises, a loss is measured.

    Args:
        timesteps: How many timesteps, evenly spaced from 0. 20 of 1000 gives 0, 50, ..., 950.
        noises: How many noises at each timestep.
        mode: ``shared``: one set of noises for all samples and queries. ``own``: noises of their own for each sample,
            view and caption, the published protocol of attribution by unlearning.
        seed: Another seed gives other noises.
        window: The timesteps lie evenly in ``[first, end)``; None is the whole schedule.
    """

    timesteps: int = 10
    noises: int = 1
    mode: Literal["shared", "own"] = "shared"
    seed: int = 0
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse draws without number or end."""
        expect_within("draws.timesteps", self.timesteps, 1, 1_000_000)
        expect_within("draws.noises", self.noises, 1, 1_000_000)
        if self.window is not None and not 0 <= self.window[0] < self.window[1]:
            raise UserError(f"draws.window: found {list(self.window)}, expected [first, end] with 0 <= first < end")

    def __len__(self) -> int:
        """Return D, the number of draws."""
        return self.timesteps * self.noises


def keyed_generator(*key: int | str) -> np.random.Generator:
    """Return a generator whose stream is a pure function of ``key`` (counter-based, 128-bit)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def draw_timesteps(draws: Draws, num_train_timesteps: int) -> Tensor:
    """Return the timesteps of all draws, int64 [D]. Consecutive draws have distinct timesteps.

    Raises:
        UserError: The schedule has fewer timesteps than the draws ask for.
    """
    first, end = draws.window or (0, num_train_timesteps)
    if end > num_train_timesteps:
        raise UserError(f"draws.window: found an end of {end}, expected at most {num_train_timesteps}")
    if draws.timesteps > end - first:
        raise UserError(f"draws.timesteps: found {draws.timesteps}, expected at most {end - first}")
    return (first + torch.arange(draws.timesteps) * (end - first) // draws.timesteps).repeat(draws.noises)


def shared_noise(draws: Draws, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the noises of the draws ``indices``, float32 [len(indices), *shape], the same for every sample."""
    return _stack([("shared", draws.seed, index) for index in indices], shape)


def own_noise(
    draws: Draws, indices: Sequence[int], shape: Sequence[int], sample_id: int, view: int = 0, caption: int = 0
) -> Tensor:
    """Return the noises of the draws ``indices`` for one sample, view and caption: float32 [len(indices), *shape]."""
    return _stack([("own", draws.seed, sample_id, view, caption, index) for index in indices], shape)


def batch_noise(
    draws: Draws, index: int, shape: Sequence[int], sample_ids: Sequence[int], view: int, caption: int
) -> Tensor:
    """Return the noise of draw ``index`` for a batch of samples, float32 [B, *shape]."""
    if draws.mode == "shared":
        return shared_noise(draws, [index], shape).expand(len(sample_ids), *shape)
    return torch.cat([own_noise(draws, [index], shape, sample_id, view, caption) for sample_id in sample_ids])


def random_timesteps(
    generator: np.random.Generator, levels: int, sampling: Sampling, size: int | None = None
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return ``size`` random timesteps below ``levels``, int64 [size]; None is a single one, [].

    Either all are as likely, or they are a sigmoid of normal numbers (Stable Diffusion 3, section 3.1).
    """
    if sampling == "uniform":
        return np.asarray(generator.integers(levels, size=size))
    shares = 1 / (1 + np.exp(-generator.standard_normal(size)))
    return np.minimum(np.floor(shares * levels), levels - 1).astype(np.int64)


def training_noise(
    seed: int,
    epoch: int,
    showing_ids: Sequence[int],
    shape: Sequence[int],
    num_train_timesteps: int,
    sampling: Sampling = "uniform",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what training adds to a batch: noises float32 [B, *shape], timesteps int64 [B], uniform numbers [B].

    A showing's randomness is its own, anew each epoch: the same on one rank as on several, after a resume, and in every
    subset of the store. Models that share a seed therefore differ by their data alone. The uniform numbers, in [0, 1),
    choose the captions to drop. The ids are those of showings; the first showing of a sample has the sample's.
    """
    generators = [keyed_generator("train", seed, epoch, showing) for showing in showing_ids]
    noise = np.stack([rng.standard_normal(tuple(shape), dtype=np.float32) for rng in generators])
    timesteps = np.array([random_timesteps(rng, num_train_timesteps, sampling) for rng in generators])
    uniform = np.array([rng.random(dtype=np.float32) for rng in generators])
    return torch.from_numpy(noise), torch.from_numpy(timesteps), torch.from_numpy(uniform)


def of_query(query_id: Ids) -> Ids:
    """Return the id that keys a query's own noises: ids of queries and samples overlap, negative ones do not."""
    return -1 - query_id


def _stack(keys: Sequence[tuple[int | str, ...]], shape: Sequence[int]) -> Tensor:
    noise = np.stack([keyed_generator(*key).standard_normal(tuple(shape), dtype=np.float32) for key in keys])
    return torch.from_numpy(noise)
