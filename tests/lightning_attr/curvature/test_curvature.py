"""The diagonal Fisher: inverse, damping, files; and the optimizer that steps along it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_attr.curvature import Damping, DiagonalCurvature, load_curvature, squared_sums
from lightning_attr.errors import UserError
from lightning_attr.optim import NaturalGradient

FISHER = {"a.weight": torch.tensor([[1.0, 4.0], [2.0, 5.0]], dtype=torch.float64)}
SETTINGS = {"weights": "cross_kv", "draws": 10, "digests": {"checkpoint": "abc"}}


def test_squared_sums_in_double_precision() -> None:
    gradients = {"a": torch.full((1000, 3), 1e-4)}
    assert squared_sums(gradients)["a"].dtype == torch.float64
    torch.testing.assert_close(squared_sums(gradients)["a"], torch.full((3,), 1e-5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("damping", "added"), [(Damping(), 0.0), (Damping(0.5), 0.5), (Damping(0.1, "mean"), 0.1 * 3.0)]
)
def test_inverse(damping: Damping, added: float) -> None:
    gradient = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    found = DiagonalCurvature(FISHER, SETTINGS).inverse({"a.weight": gradient}, damping)["a.weight"]
    torch.testing.assert_close(found, (gradient / (FISHER["a.weight"] + added)).float())
    assert found.dtype == gradient.dtype


def test_overall_damping_is_of_all_weights_that_are_asked_for() -> None:
    flat = {"b.weight": torch.full((2, 3), 1e-12, dtype=torch.float64)}
    curvature = DiagonalCurvature(FISHER | flat | {"c.weight": torch.full((9,), 1e9, dtype=torch.float64)}, SETTINGS)
    gradients = {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 3)}
    found = curvature.inverse(gradients, Damping(0.5, "overall"))
    added = 0.5 * 12 / 10  # the sum of both weights' entries, over their number
    torch.testing.assert_close(found["a.weight"], (1 / (FISHER["a.weight"] + added)).float())
    torch.testing.assert_close(found["b.weight"], torch.full((2, 3), 1 / added))
    alone = curvature.inverse({"b.weight": gradients["b.weight"]}, Damping(0.5, "overall"))["b.weight"]
    torch.testing.assert_close(alone, torch.full((2, 3), 1 / 1.5e-12))
    with pytest.raises(ValueError, match="expected a settled one"):  # and not taken for a fixed one
        Damping(0.5, "overall").of(FISHER["a.weight"])


def test_zero_entries_need_damping() -> None:
    curvature = DiagonalCurvature({"a.weight": torch.tensor([0.0, 1.0])}, SETTINGS)
    with pytest.raises(UserError, match=r"1 entries of a.weight are zero; set a damping"):
        curvature.inverse({"a.weight": torch.ones(2)}, Damping())
    assert curvature.inverse({"a.weight": torch.ones(2)}, Damping(0.5))["a.weight"].tolist() == pytest.approx(
        [2, 2 / 3]
    )


def test_other_weights_are_refused() -> None:
    curvature = DiagonalCurvature(FISHER, SETTINGS)
    with pytest.raises(UserError, match=r"found none for b.weight, it was fitted on weights 'cross_kv'"):
        curvature.inverse({"b.weight": torch.ones(2)}, Damping())
    with pytest.raises(UserError, match=r"found a.weight \(2, 2\), expected \(3, 2\)"):
        curvature.inverse({"a.weight": torch.ones(3, 2)}, Damping())


def test_save_and_load(tmp_path: Path) -> None:
    DiagonalCurvature(FISHER, SETTINGS).save(tmp_path / "curvature.safetensors")
    loaded = load_curvature(tmp_path / "curvature.safetensors")
    assert isinstance(loaded, DiagonalCurvature)
    assert torch.equal(loaded.fisher["a.weight"], FISHER["a.weight"])
    assert loaded.settings["digests"] == {"checkpoint": "abc"}


def test_natural_gradient_steps_along_the_inverse() -> None:
    layer = nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    curvature = DiagonalCurvature({"weight": FISHER["a.weight"]}, SETTINGS)
    optimizer = NaturalGradient(
        {"weight": layer.weight}, 0.1, lambda gradients: curvature.inverse(gradients, Damping(0.5))
    )
    layer.weight.grad = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    optimizer.step()
    expected = before - 0.1 * layer.weight.grad / (FISHER["a.weight"] + 0.5)
    torch.testing.assert_close(layer.weight.detach(), expected.float())
