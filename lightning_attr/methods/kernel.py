"""Ridge regression on features of samples, the algebra of the TRAK family: ``Phi_q (Phi^T Phi + lambda)^-1 Phi^T``.

Shapes: N samples in all, Q queries, B samples of a chunk, R features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def gram(chunks: Sequence[Tensor]) -> Tensor:
    """Return the inner products of all samples, float64 [N, N], with two chunks in memory at a time."""
    rows = []
    for index, left in enumerate(chunks):
        blocks = [left.double() @ chunks[other].double().T for other in range(index + 1)]
        rows.append(torch.cat(blocks, dim=1))
    size = rows[-1].shape[1]
    lower = torch.cat([torch.nn.functional.pad(row, (0, size - row.shape[1])) for row in rows])
    # A block on the diagonal is whole already; the strict upper triangle mirrors the lower one.
    return lower.tril() + lower.tril(-1).T


def ridge_scores(query_QR: Tensor, chunks: Sequence[Tensor], regularisation: float) -> Iterator[Tensor]:
    """Yield the scores of every chunk, float32 [Q, B].

    Works on the features' side (R x R) or on the samples' side (N x N), whichever is smaller; the scores are the same.

    Args:
        query_QR: Features of the queries, [Q, R].
        chunks: Features of the samples, [B, R] each.
        regularisation: lambda as a fraction of the mean squared norm of the samples' features.
    """
    samples = sum(len(chunk) for chunk in chunks)
    if query_QR.shape[1] <= samples:
        moment = sum((chunk.double().T @ chunk.double() for chunk in chunks), torch.zeros((), dtype=torch.float64))
        weights_RQ = _solve(moment, regularisation * moment.trace() / samples, query_QR.double().T)
        for chunk in chunks:
            yield (chunk.double() @ weights_RQ).T.float()
        return
    kernel_NN = gram(chunks)
    products_NQ = torch.cat([chunk.double() @ query_QR.double().T for chunk in chunks])
    scores_QN = _solve(kernel_NN, regularisation * kernel_NN.trace() / samples, products_NQ).T.float()
    yield from scores_QN.split([len(chunk) for chunk in chunks], dim=1)  # type: ignore[no-untyped-call]


def _solve(symmetric: Tensor, shift: Tensor, right: Tensor) -> Tensor:
    shifted = symmetric + shift * torch.eye(len(symmetric), dtype=symmetric.dtype)
    return torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
