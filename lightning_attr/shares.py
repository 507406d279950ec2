"""Shares: how much of an output each training image has, fitted where the right answer is known.

Soft attribution as in "Evaluating Data Attribution for Text-to-Image Models" (ICCV 2023), section 5, and one entry
more: "none of these", which is fitted on outputs whose exemplars are taken out of the gallery.

Shapes: Q queries, N samples of a gallery; of N + 1 entries the last one is "none of these".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.expect import expect_settings, expect_tensors
from lightning_attr.artifacts.provenance import differs, digest_of
from lightning_attr.artifacts.scores import Scores
from lightning_attr.errors import UserError, quoted

#: The kind of the file.
KIND = "shares"

#: Above this calibration error on test exemplars nobody is shown shares.
MOST_ERROR = 0.05


class Known(NamedTuple):
    """Queries whose exemplars are known.

    Attributes:
        scores: Of the samples of their gallery, [Q, N].
        exemplar: Which samples are exemplars, bool [N].
    """

    scores: Tensor
    exemplar: Tensor

    def without(self) -> Tensor:
        """Return the scores of the gallery without the exemplars, [Q, N - exemplars]."""
        return self.scores[:, ~self.exemplar]


def standardised(scores_QN: Tensor) -> Tensor:
    """Return each query's scores minus their mean, in units of their standard deviation, float64 [Q, N].

    Scores of any scale then mean the same: by how far a sample stands out of its gallery.
    """
    scores = scores_QN.double()
    deviation = scores.std(1, correction=0, keepdim=True)
    return torch.where(deviation > 0, (scores - scores.mean(1, keepdim=True)) / deviation, 0.0)


def masses(z_QN: Tensor, kappa: Tensor, b: Tensor) -> Tensor:
    """Return ``a + b / 1000`` of each sample, [Q, N], where ``a = exp(kappa z)`` over the largest of these.

    The paper allows a ``b`` below 0, and cuts with ``max(0, a + b / 1000)``; it fits with a softplus in place of the
    cut. What is due to exemplars of low scores is then given to others (docs/shares.md has numbers). From 0 on nothing
    is cut, and what is fitted is what is used.

    Args:
        z_QN: Standardised scores.
        kappa: How fast mass grows with the score.
        b: A thousandth of it is what a sample has whatever its score, the largest having 1.
    """
    return (kappa * (z_QN - z_QN.amax(1, keepdim=True))).exp() + b / 1000


def negative_log_share(masses_QN: Tensor, exemplar_N: Tensor) -> Tensor:
    """Return ``log sum_j m_j - mean over exemplars of log m_e`` of each query, [Q]."""
    return masses_QN.sum(1).log() - masses_QN[:, exemplar_N].log().mean(1)


@dataclass(frozen=True)
class SoftAttribution:
    """What turns a query's scores into shares.

    Args:
        kappa: See :func:`masses`; above 0.
        b: Likewise; at least 0.
        slope: Of the logistic regression that tells by the highest standardised score whether exemplars are there.
        offset: Of the same.
    """

    kappa: float = 1.0
    b: float = 0.0
    slope: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, vars(self).values()))
        if not (finite and self.kappa > 0 and self.b >= 0 and self.slope >= 0):
            raise UserError(f"shares: found {self}, expected finite numbers, kappa > 0, b >= 0 and slope >= 0")

    def shares(self, scores_QN: Tensor) -> Tensor:
        """Return the share of every sample, and of "none of these", float64 [Q, N + 1]; those of a query add up to 1.

        Args:
            scores_QN: Of all samples of the gallery, by the method that this was fitted for.
        """
        z_QN = standardised(scores_QN)
        found_QN = masses(z_QN, z_QN.new_tensor(self.kappa), z_QN.new_tensor(self.b))
        here_Q1 = (self.slope * z_QN.amax(1, keepdim=True) + self.offset).sigmoid()
        return torch.cat([here_Q1 * found_QN / found_QN.sum(1, keepdim=True), 1 - here_Q1], dim=1)


def fitted(known: Iterable[Known]) -> SoftAttribution:
    """Fit what turns scores into shares.

    Where a query's exemplars are in its gallery they are to have equal shares. "None of these" is to have all where
    they have been taken out; there are as many queries with them as without.

    Raises:
        UserError: No numbers were found at which the shares fit, such as for scores that say nothing.
    """
    blocks = [Known(standardised(each.scores), each.exemplar) for each in known]
    tops = [torch.cat([part.amax(1) for part in parts]) for parts in zip(*map(_both, blocks), strict=True)]
    total = sum(len(block.scores) for block in blocks)

    def loss(values: Tensor) -> Tensor:
        kappa, b = values.exp()
        losses = [negative_log_share(masses(z, kappa, b), exemplar).sum() for z, exemplar in blocks]
        return torch.stack(losses).sum() / total

    starts = [(math.log(kappa), math.log(b)) for kappa in (0.5, 2.0) for b in (0.01, 10.0)]
    found = [_descended(start, loss) for start in starts]
    least, (log_kappa, log_b) = min(found, key=lambda each: each[0] if math.isfinite(each[0]) else math.inf)
    if not math.isfinite(least):
        raise UserError("shares: found no finite loss, expected scores by which exemplars can be told from others")
    slope, offset = gate(*tops)
    return SoftAttribution(math.exp(log_kappa), math.exp(log_b), slope, offset)


def _both(block: Known) -> tuple[Tensor, Tensor]:
    """Return the standardised scores of the gallery with the exemplars and of the one without."""
    return block.scores, standardised(block.without())


def gate(here_Q: Tensor, gone_Q: Tensor) -> tuple[float, float]:
    """Return slope and offset of the logistic regression of being there on a number of each query.

    Its targets are not 1 and 0 but ``(n + 1) / (n + 2)`` and ``1 / (n + 2)`` (Platt 1999): where the two can be told
    apart without error, the slope would have no end.

    Args:
        here_Q: The number, of n queries whose exemplars are in the gallery.
        gone_Q: Of as many without.
    """
    value = torch.cat([here_Q, gone_Q])
    n = len(here_Q)
    target = torch.cat([torch.full_like(here_Q, (n + 1) / (n + 2)), torch.full_like(gone_Q, 1 / (n + 2))])
    center = float(value.mean())

    def loss(values: Tensor) -> Tensor:
        logits = values[0] * (value - center) + values[1]
        return binary_cross_entropy_with_logits(logits, target)

    _, (slope, offset) = _descended((1.0, 0.0), loss)
    return (slope, offset - slope * center) if slope > 0 else (0.0, 0.0)


def _descended(start: Sequence[float], loss: Callable[[Tensor], Tensor]) -> tuple[float, list[float]]:
    """Return the least loss that a descent from a start finds, and where."""
    values = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([values], max_iter=60, tolerance_change=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        result = loss(values)
        result.backward()  # type: ignore[no-untyped-call]
        return result

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float(loss(values)), values.tolist()


@dataclass(frozen=True)
class Shares:
    """A soft attribution and what it was fitted on; a file of kind ``shares``.

    Args:
        soft: What turns scores into shares.
        method: The method whose scores they are.
        settings: Those of the method, less what differs between stores and models; ``digests`` of the gallery, its
            encoders and the queries; ``gallery``, how many samples those were; ``calibration`` on test exemplars.
    """

    soft: SoftAttribution
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the file."""
        values = {name: torch.tensor(value, dtype=torch.float64) for name, value in vars(self.soft).items()}
        save_tensors(path, KIND, values, {"method": self.method, **self.settings})

    @classmethod
    def load(cls, path: str | Path) -> Shares:
        """Read the file.

        Raises:
            UserError: It is missing, damaged, or holds something else.
        """
        tensors, settings = load_tensors(path, KIND)
        expect_tensors(path, tensors, dict.fromkeys(("kappa", "b", "slope", "offset"), "finite"))
        expected = {"method": str, "of_method": dict, "gallery": int, "digests": dict, "calibration": dict}
        expect_settings(str(path), settings, expected)
        method = settings.pop("method")
        return cls(SoftAttribution(**{name: float(value) for name, value in tensors.items()}), method, settings)

    @property
    def error(self) -> float:
        """Return the calibration error on test exemplars; infinite where it was not measured."""
        found = self.settings["calibration"].get("error", [math.inf])[0]
        return float(found) if isinstance(found, int | float) else math.inf

    def expect_calibrated(self, path: str | Path) -> None:
        """Check that the shares are right within the error that is allowed.

        Raises:
            UserError: They are not, or nobody has looked.
        """
        if not self.error <= MOST_ERROR:
            found = "no calibration on a test split" if math.isinf(self.error) else f"an error of {self.error:.3f}"
            raise UserError(f"{path}: found {found}, expected a calibration error of at most {MOST_ERROR}")

    def unfit(self, scores: Scores, encoders: str | None) -> str | None:
        """Return why the shares were not fitted for some scores, in words; None where they were.

        Args:
            scores: The scores.
            encoders: The digest of the encoders of their store.
        """
        if scores.method != self.method:
            return f"they are fitted for {self.method}, not for {scores.method}"
        found, expected = scores.of_method, self.settings["of_method"]
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                return f"they are fitted for {name} {quoted(expected.get(name))}, not for {quoted(found.get(name))}"
        if differs(encoders, digest_of(self.settings, "encoders")):
            return "they are fitted on a gallery of other encoders"
        return None
