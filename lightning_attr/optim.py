"""The optimizer of unlearning: steps along the inverse curvature times the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Precondition = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class NaturalGradient(torch.optim.Optimizer):
    """Steps ``theta - lr * F^-1 grad``; unlearning minimises minus the loss, so it ascends (AbU, equation 6).

    Args:
        named_weights: The weights to change.
        lr: Step size, alpha / N of the paper.
        precondition: Gradients by name -> ``F^-1`` times them by name.
    """

    def __init__(self, named_weights: Mapping[str, nn.Parameter], lr: float, precondition: Precondition) -> None:
        super().__init__(list(named_weights.values()), {"lr": lr})
        self._names = list(named_weights)
        self._precondition = precondition

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the loss of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        weights = dict(zip(self._names, group["params"], strict=True))
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        for name, direction in self._precondition(gradients).items():
            weights[name].add_(direction, alpha=-group["lr"])
        return loss
