"""The average is of what is trained."""

from __future__ import annotations

import torch
from torch import nn

from callbacks.ema import trained_part


def test_what_is_frozen_is_left_out() -> None:
    module = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "b": nn.Linear(2, 2)})
    assert trained_part(module) is module
    module["a"][0].requires_grad_(False)  # type: ignore[index]
    part = trained_part(module)
    expected = {name: weight for name, weight in module.named_parameters() if not name.startswith("a.0.")}
    assert dict(part.named_parameters()).keys() == expected.keys() == part.state_dict().keys()
    with torch.no_grad():
        part.get_parameter("b.weight").zero_()
    assert not bool(module["b"].weight.any())
