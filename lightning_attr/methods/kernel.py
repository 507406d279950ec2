"""Ridge regression on features of samples, the algebra of the TRAK family: ``Phi_q (Phi^T Phi + lambda)^-1 Phi^T``.

Features may be those of several draws; each draw has a regression of its own, and the scores are summed.

Shapes: N samples in all, Q queries, B samples of a chunk, D draws, R features of a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_attr.errors import UserError
from lightning_attr.methods.base import Columns

#: How many numbers the matrices that are solved at once may hold, 1 GB of float64; more draws take more passes.
NUMBERS_AT_ONCE = 2**27


def ridge_scores(query_DQR: Tensor, chunks: Sequence[Tensor], regularisation: float) -> Iterator[Tensor]:
    """Yield the scores of every chunk, float32 [Q, B]; higher = more influential.

    Works on the features' side (R x R) or on the samples' side (N x N), whichever is smaller; the scores are the same.
    Only those matrices and two chunks are in memory at a time.

    Args:
        query_DQR: Features of the queries, [D, Q, R].
        chunks: Features of the samples, [B, D * R] each, draw by draw.
        regularisation: Lambda as a fraction of the mean squared norm of the samples' features at a draw.

    Raises:
        UserError: Features are not finite, or depend on each other, and the regularisation is too small to tell them
            apart.
    """
    sizes = [len(chunk) for chunk in chunks]
    draws, _, width = query_DQR.shape
    at_once = max(1, NUMBERS_AT_ONCE // min(width, sum(sizes)) ** 2)
    groups = [
        (query_DQR[start : start + at_once], Columns(chunks, [(start * width, min(start + at_once, draws) * width)]))
        for start in range(0, draws, at_once)
    ]
    if width <= sum(sizes):
        weights = torch.cat([_feature_weights(query, part, regularisation) for query, part in groups]).flatten(0, 1)
        for chunk in chunks:
            yield (chunk.double() @ weights).T.float()
        return
    scores_QN = torch.stack([_sample_scores(query, part, sizes, regularisation) for query, part in groups]).sum(0)
    yield from scores_QN.float().split(sizes, dim=1)  # type: ignore[no-untyped-call]


def weighed_ridge_scores(
    query_DQR: Tensor, chunks: Sequence[Tensor], regularisation: float, weights: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Yield the scores of samples that count as often as their weights say, float32 [Q, B] of every chunk.

    They are those that copies of a sample would have, summed: with features and scores times the root of the weight.

    Args:
        query_DQR: As of :func:`ridge_scores`.
        chunks: Likewise.
        regularisation: Likewise; the mean is over all that is counted.
        weights: At least 1, [B] of every chunk.
    """
    roots = [weight.double().sqrt() for weight in weights]
    counted, samples = sum(float(weight.sum()) for weight in weights), sum(map(len, weights))
    if counted == samples:
        yield from ridge_scores(query_DQR, chunks, regularisation)
        return
    scores = ridge_scores(query_DQR, _Scaled(chunks, roots), regularisation * samples / counted)
    for one, root in zip(scores, roots, strict=True):
        yield one * root.to(one)


@dataclass(frozen=True)
class _Scaled(Sequence[Tensor]):
    """The rows of chunks times a factor each, float64."""

    chunks: Sequence[Tensor]
    factors: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: Any) -> Any:
        rows = self.chunks[index].double()
        return rows * self.factors[index].to(rows)[:, None]


def _feature_weights(query_DQR: Tensor, chunks: Sequence[Tensor], regularisation: float) -> Tensor:
    """Return what a sample's features are multiplied with to score it, float64 [D, R, Q]."""
    samples, moment_DRR = 0, torch.zeros((), dtype=torch.float64)
    for chunk in chunks:
        features_DBR = _by_draw(chunk, len(query_DQR))
        samples += len(chunk)
        moment_DRR = moment_DRR.to(chunk.device) + features_DBR.mT @ features_DBR
    return _solve(moment_DRR, samples, regularisation, query_DQR.to(moment_DRR).mT)


def _sample_scores(query_DQR: Tensor, chunks: Sequence[Tensor], sizes: Sequence[int], regularisation: float) -> Tensor:
    """Return the scores of all samples, summed over draws, float64 [Q, N]."""
    products_DNQ = torch.cat(
        [_by_draw(chunk, len(query_DQR)) @ query_DQR.to(chunk.device).double().mT for chunk in chunks], dim=1
    )
    return _solve(gram(chunks, sizes, len(query_DQR)), sum(sizes), regularisation, products_DNQ).sum(0).T


def gram(chunks: Sequence[Tensor], sizes: Sequence[int], draws: int = 1) -> Tensor:
    """Return the inner products of all samples at each draw, float64 [D, N, N], with two chunks in memory at a time.

    Args:
        chunks: Features of the samples, [B, D * R] each, draw by draw.
        sizes: B of each chunk.
        draws: D.
    """
    places = torch.arange(sum(sizes)).split(list(sizes))  # type: ignore[no-untyped-call]
    kernel_DNN = torch.empty(draws, sum(sizes), sum(sizes), dtype=torch.float64, device=chunks[0].device)
    for index, rows in enumerate(places):
        left = _by_draw(chunks[index], draws)
        for other in range(index + 1):
            right = left if other == index else _by_draw(chunks[other], draws)
            columns, block = places[other], left @ right.mT
            kernel_DNN[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = block
            kernel_DNN[:, columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1] = block.mT
    return kernel_DNN


def _by_draw(chunk: Tensor, draws: int) -> Tensor:
    return chunk.double().reshape(len(chunk), draws, -1).transpose(0, 1)


def _solve(symmetric_DMM: Tensor, samples: int, regularisation: float, right: Tensor) -> Tensor:
    """Return ``(symmetric + lambda)^-1 right``; the trace on either side is the sum of the squared norms of samples.

    The diagonal is shifted in place: a copy of such a matrix is dear.
    """
    diagonal_DM = symmetric_DMM.diagonal(dim1=1, dim2=2)
    if not bool(diagonal_DM.isfinite().all()):
        raise UserError("features: found some that are not finite, expected finite gradients of all samples")
    diagonal_DM += regularisation * diagonal_DM.sum(1, keepdim=True) / samples
    factor, failed = torch.linalg.cholesky_ex(symmetric_DMM)
    if bool(failed.any()):
        raise UserError(
            f"method.regularisation: found {regularisation}, expected more: features of samples depend on each other"
        )
    return torch.cholesky_solve(right, factor)
