"""What is measured about an attribution, as functions on tensors: one value per query, in float64.

AbU is "Data Attribution for Text-to-Image Models by Unlearning Synthesized Images" (NeurIPS 2024), AbC is "Evaluating
Data Attribution for Text-to-Image Models" (ICCV 2023), D-TRAK is "Intriguing Properties of Data Attribution on
Diffusion Models" (ICLR 2024).

A value that is not defined, or that is measured on NaN, is NaN: it says "unknown", and never passes for a good or a bad
result. Tensors of the wrong shape or dtype raise ``ValueError``.

Shape suffixes: Q queries, N samples, M retrained models, D draws, F features.
"""

import torch
from torch import Tensor


def loss_change(original: Tensor, retrained: Tensor) -> Tensor:
    """Return loss change Delta L: how much worse a model retrained without the influential samples denoises the query.

    The mean over draws of the retrained model's loss minus the original's, both on the same draws (AbU, the
    leave-K-out evaluation). Higher is better: the removed samples mattered.

    Args:
        original: Losses under the original model, ``[..., D]``.
        retrained: Losses under the retrained model on the same draws, ``[..., D]``.

    Returns:
        The loss change, ``[...]``, in the units of the loss.

    >>> loss_change(torch.tensor([[0.10, 0.20]]), torch.tensor([[0.15, 0.25]]))
    tensor([0.0500], dtype=torch.float64)

    """
    expect("retrained", retrained, original.shape)
    return (retrained.double() - original.double()).mean(-1)


def generation_deviation(original: Tensor, regenerated: Tensor) -> Tensor:
    """Measure the generation deviation Delta G: how far a retrained model strays with the same noise and prompt.

    The mean squared error between the query and its regeneration (AbU, the leave-K-out evaluation). Higher is better.

    Args:
        original: The queries, ``[Q, ...]``.
        regenerated: Their regenerations by the retrained model, ``[Q, ...]``.

    Returns:
        The deviation, ``[Q]``, in squared units of the images.

    >>> generation_deviation(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5))
    tensor([0.2500, 0.2500], dtype=torch.float64)

    """
    expect("regenerated", regenerated, original.shape)
    return (regenerated.double() - original.double()).square().flatten(1).mean(1)


def feature_similarity(original: Tensor, regenerated: Tensor) -> Tensor:
    """Measure Delta G in a feature space: the cosine of the flattened features, such as CLIP's.

    Lower is better: the regeneration no longer resembles the query (AbU, the leave-K-out evaluation).

    Args:
        original: Features of the queries, ``[Q, ...]``.
        regenerated: Features of their regenerations, ``[Q, ...]``.

    Returns:
        The cosine, ``[Q]``, in [-1, 1]; NaN where one of the two vectors is zero.

    >>> feature_similarity(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    tensor([1., 0.], dtype=torch.float64)

    """
    expect("regenerated", regenerated, original.shape)
    return _cosine(original.double().flatten(1), regenerated.double().flatten(1))


def recall_at_k(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Return recall@K: relevant samples among the K highest-scored ones / relevant samples (AbC, retrieval metrics).

    The divisor is the number of relevant samples even where it exceeds K, as in the paper: the value can then not
    reach 1. Of samples with equal scores the one with the lower index ranks higher.

    Args:
        scores: Influence scores, higher = more influential, ``[Q, N]``.
        relevant: Whether the sample is known to have influenced the query (an exemplar), bool ``[Q, N]``.
        k: How many samples are retrieved, at least 1; more than N retrieves all.

    Returns:
        The recall, ``[Q]``, in [0, 1]; NaN for a query with no relevant sample or with a NaN score.

    >>> scores = torch.tensor([[0.9, 0.1, 0.5, 0.2]])
    >>> recall_at_k(scores, torch.tensor([[True, True, False, False]]), k=2)
    tensor([0.5000], dtype=torch.float64)

    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    expect("scores", scores, (None, None))
    expect("relevant", relevant, scores.shape, torch.bool)
    top = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    recall = relevant.gather(1, top).sum(1).double() / relevant.sum(1)
    return _nan_where(scores.isnan().any(1), recall)


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return average precision, whose mean over queries is mAP (AbC, the retrieval metrics).

    Each relevant sample's own score is taken as the threshold; the precision among all samples that reach it is
    averaged over the relevant samples. Equal scores thus enter together, whatever their order: this equals
    scikit-learn's sum of (R_n - R_{n-1}) P_n over distinct thresholds.

    Args:
        scores: Influence scores, higher = more influential, ``[Q, N]``.
        relevant: Whether the sample is known to have influenced the query (an exemplar), bool ``[Q, N]``.

    Returns:
        The average precision, ``[Q]``, in [0, 1]; NaN for a query with no relevant sample or with a NaN score.

    >>> average_precision(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[True, False, True]]))
    tensor([0.8333], dtype=torch.float64)

    """
    expect("scores", scores, (None, None))
    expect("relevant", relevant, scores.shape, torch.bool)
    unknown = scores.isnan()
    scores = scores.masked_fill(unknown, 0)  # NaN has no place in an order; its query ends as NaN below
    ascending, order = scores.sort(dim=1)
    retrieved = scores.shape[1] - torch.searchsorted(ascending, scores.contiguous())
    hits = relevant.gather(1, order).flip(1).cumsum(1).gather(1, retrieved - 1)
    precision = hits.double() / retrieved
    mean = (precision * relevant).sum(1) / relevant.sum(1)
    return _nan_where(unknown.any(1), mean)


def subset_sums(scores: Tensor, masks: Tensor) -> Tensor:
    """Predict what each training subset is worth to each query: the sum of the scores of its samples.

    Args:
        scores: Influence scores, ``[Q, N]``.
        masks: Which samples each model was trained on, bool ``[M, N]``.

    Returns:
        The sums, ``[Q, M]``; NaN for a query with a NaN score.

    >>> subset_sums(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, True], [False, True, True]]))
    tensor([[4., 3.]], dtype=torch.float64)

    """
    expect("scores", scores, (None, None))
    expect("masks", masks, (None, scores.shape[1]), torch.bool)
    # Scores are stored as float32, so that float64 sums them almost exactly: subsets that tie stay tied.
    return scores.double() @ masks.double().T


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation between the rows of two ``[Q, M]``. Equal values share their average rank.

    Returns:
        The correlation, ``[Q]``, in [-1, 1]; NaN for fewer than two columns, a row of equal values, or NaN in a row.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 5.0, 6.0]]))
    tensor([1.], dtype=torch.float64)

    """
    expect("b", b, a.shape)
    return _nan_where((a.isnan() | b.isnan()).any(1), _cosine(_centred_ranks(a), _centred_ranks(b)))


def linear_datamodelling_score(scores: Tensor, masks: Tensor, losses: Tensor) -> Tensor:
    """Return linear datamodelling scores (LDS): how well summed scores predict which training subsets serve the query.

    Spearman's rank correlation over models between the sum of the scores in the model's subset and the *negative* loss
    of the query under that model (D-TRAK, the LDS protocol). Equal values share their average rank.

    Args:
        scores: Influence scores, higher = more influential, ``[Q, N]``.
        masks: Which samples each model was trained on, bool ``[M, N]``.
        losses: Loss of each query under each model, ``[Q, M]``.

    Returns:
        The rank correlation, ``[Q]``, in [-1, 1]; NaN with fewer than two models, where all sums or all losses are
        equal, and where a score or a loss is NaN.

    >>> scores = torch.tensor([[3.0, 2.0, 1.0]])
    >>> masks = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    >>> linear_datamodelling_score(scores, masks, torch.tensor([[0.1, 0.2, 0.3]]))
    tensor([1.], dtype=torch.float64)

    """
    predicted = subset_sums(scores, masks)
    expect("losses", losses, (scores.shape[0], masks.shape[0]))
    return rank_correlation(predicted, -losses.double())


def _centred_ranks(values: Tensor) -> Tensor:
    """Return the ranks within each row of ``[Q, M]``, average ranks for ties, minus their mean (M + 1) / 2."""
    values = values.contiguous()
    ascending = values.sort(dim=1).values
    below = torch.searchsorted(ascending, values)
    not_above = torch.searchsorted(ascending, values, right=True)
    # Ranks run from below + 1 to not_above. Halves are exact in float64: equal values give exact zeros, hence NaN.
    return (below + not_above - values.shape[1]).double() / 2


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine between the rows of ``[Q, F]``; 0 / 0 = NaN for a zero row, where torch's would say 0."""
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _nan_where(unknown: Tensor, value: Tensor) -> Tensor:
    return value.masked_fill(unknown, torch.nan)


def expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype | None = None) -> None:
    """Raise ``ValueError`` unless the tensor has this shape (None: any size) and, if given, this dtype."""
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(want not in (None, size) for want, size in zip(shape, sizes, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} has shape {list(sizes)}, expected [{wanted}]")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected {dtype}")
