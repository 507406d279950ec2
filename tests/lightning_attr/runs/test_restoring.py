"""A run goes on from its own checkpoint, and from no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from damage import changed
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import EMA
from lightning_attr.errors import UserError
from lightning_attr.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint

Change = Callable[[dict[str, Any]], object]


class Line(pl.LightningModule):
    """Fits a line with a schedule of rates."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.layer(batch) - batch).square().mean()
        return loss

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(8.0).reshape(4, 2))  # type: ignore[arg-type]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder: Path, steps: int, checkpoint: Path | None = None) -> Path:
    pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, callbacks=[EMA(decay=0.5), RunCheckpoint()],
        plugins=[AtomicCheckpointIO()], logger=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(Line(), ckpt_path=checkpoint)  # fmt: skip
    return folder / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("run"), 3)


def first(found: dict[str, Any], key: str) -> Any:
    """The first entry of a mapping, or of a list of them."""
    value = found[key][0] if isinstance(found[key], list) else found[key]
    return next(iter(value))


def moments(name: str, value: Any) -> Change:
    return lambda found: found["optimizer_states"][0]["state"][0].update({name: value})


def progress(value: Any) -> Change:
    return lambda found: found["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"].update(ready=value)


NOT_RESUMED: dict[str, Change] = {
    "no weights": lambda found: found.update(state_dict=None),
    "a list of weights": lambda found: found.update(state_dict=[torch.ones(2)]),
    "a weight less": lambda found: found["state_dict"].pop(first(found, "state_dict")),
    "a weight more": lambda found: found["state_dict"].update(more=torch.ones(2)),
    "a word as weight": lambda found: found["state_dict"].update({first(found, "state_dict"): "a"}),
    "a weight of another shape": lambda found: found["state_dict"].update({first(found, "state_dict"): torch.ones(1)}),
    "a weight of integers": lambda found: found.update(
        state_dict={name: value.long() for name, value in found["state_dict"].items()}
    ),
    "no loops": lambda found: found.update(loops=None),
    "empty loops": lambda found: found.update(loops={}),
    "loops of a word": lambda found: found.update(loops={"fit_loop": "a"}),
    "progress in words": progress("many"),
    "negative progress": progress(-3),
    "half a batch": progress(0.5),
    "no progress": progress(None),
    "no optimizers": lambda found: found.update(optimizer_states=[]),
    "an optimizer too many": lambda found: found["optimizer_states"].append(found["optimizer_states"][0]),
    "an optimizer in words": lambda found: found.update(optimizer_states=["adam"]),
    "an optimizer's state of a list": lambda found: found["optimizer_states"][0].update(state=[1]),
    "moments of another shape": moments("exp_avg", torch.ones(3)),
    "moments in words": moments("exp_avg_sq", "a"),
    "no moments": moments("exp_avg", None),
    "a step in words": moments("step", "a"),
    "other groups": lambda found: found["optimizer_states"][0].update(param_groups=[]),
    "a rate in words": lambda found: found["optimizer_states"][0]["param_groups"][0].update(lr="fast"),
    "a negative rate": lambda found: found["optimizer_states"][0]["param_groups"][0].update(lr=-1.0),
    "a rate that is no number": lambda found: found["optimizer_states"][0]["param_groups"][0].update(lr=float("nan")),
    "no schedulers": lambda found: found.update(lr_schedulers=[]),
    "a scheduler in words": lambda found: found.update(lr_schedulers=["a"]),
    "a scheduler's step in words": lambda found: found["lr_schedulers"][0].update(last_epoch="a"),
    "callbacks of a list": lambda found: found.update(callbacks=[1]),
    "an average of another shape": lambda found: found["current_model_state"].update(
        {first(found, "current_model_state"): torch.ones(1)}
    ),
    "an average in words": lambda found: found.update(current_model_state="a"),
    "validation in words": lambda found: found.update(validation_due="yes"),
    "gradients in words": lambda found: found.update(gradients="a"),
    "gradients of other weights": lambda found: found.update(gradients=[{"other": torch.ones(2)}]),
    "gradients of another shape": lambda found: found.update(gradients=[{"layer.bias": torch.ones(1)}]),
    "gradients of integers": lambda found: found.update(gradients=[{"layer.bias": torch.ones(2).long()}]),
}


@pytest.mark.parametrize("name", NOT_RESUMED)
def test_a_checkpoint_that_no_run_goes_on_from(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Lightning takes up anything, and fails at a later step, or takes it for the truth."""
    path = changed(checkpoint, tmp_path / "other.ckpt", NOT_RESUMED[name])
    with pytest.raises(UserError) as refused:
        fit(tmp_path, 5, path)
    message = str(refused.value)
    assert message.startswith(f"checkpoint {path}: ")
    assert "\n" not in message
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


def test_the_same_checkpoint_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    path = changed(checkpoint, tmp_path / "same.ckpt", lambda found: found)
    assert torch.load(fit(tmp_path, 5, path), weights_only=True)["global_step"] == 5


def test_a_group_of_parameters_in_other_numbers(checkpoint: Path, tmp_path: Path) -> None:
    """A whole number where there was a fraction is the same number."""
    path = changed(
        checkpoint, tmp_path / "same.ckpt", lambda found: found["optimizer_states"][0]["param_groups"][0].update(lr=1)
    )
    fit(tmp_path, 5, path)
