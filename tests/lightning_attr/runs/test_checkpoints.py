"""Checkpoints: whole at every moment, and read without running code."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import EMA
from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.errors import UserError
from lightning_attr.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint


class Line(pl.LightningModule):
    """Fits a line; validates in two batches."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.fail_at = fail_at
        nn.init.constant_(self.layer.weight, 3.0)
        nn.init.zeros_(self.layer.bias)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.layer(batch) - batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx == self.fail_at:
            raise RuntimeError("validation fails")

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(1.0, 5.0)[:, None])  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(folder: Path, *callbacks: pl.Callback, steps: int = 4) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=steps, callbacks=list(callbacks), logger=False,
        plugins=[AtomicCheckpointIO()], enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def test_a_write_that_fails_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(2), "b": lambda: None}, path)
    assert path.read_bytes() == before
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))


def test_saves_every_so_many_steps_and_at_the_end_in_one_file(tmp_path: Path) -> None:
    seen = []

    class Saved(pl.Callback):
        def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: object) -> None:
            seen.append(trainer.global_step)

    run = trainer(tmp_path, RunCheckpoint(every_n_train_steps=3), Saved(), steps=7)
    run.limit_val_batches = 0
    run.fit(Line())
    assert seen == [3, 6, 7]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    with pytest.raises(UserError, match="every_n_train_steps"):
        RunCheckpoint(every_n_train_steps=0)


def test_an_error_keeps_the_checkpoint_before_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="validation fails"):
        trainer(tmp_path, RunCheckpoint()).fit(Line(fail_at=1))
    checkpoint = AtomicCheckpointIO().load_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] == 4
    assert checkpoint["validation_due"] is True


def test_the_average_is_what_validation_sees_and_what_a_checkpoint_holds(tmp_path: Path) -> None:
    class Seen(Line):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.seen = self.layer.weight.detach().clone()

    module = Seen()
    trainer(tmp_path, EMA(decay=0.5), RunCheckpoint()).fit(module)
    checkpoint = AtomicCheckpointIO().load_checkpoint(tmp_path / "checkpoints/last.ckpt")
    average, current = (checkpoint[key]["layer.weight"] for key in ("state_dict", "current_model_state"))
    assert torch.equal(module.seen, average)
    assert not torch.equal(average, current)
    assert torch.equal(module.layer.weight.detach(), average)  # what follows training uses the average


@pytest.mark.parametrize("fail_at", [0, 1])
def test_an_error_in_validation_swaps_the_average_back(tmp_path: Path, fail_at: int) -> None:
    straight, failing = Line(), Line(fail_at)
    trainer(tmp_path / "straight", EMA(decay=0.5), RunCheckpoint()).fit(straight)
    with pytest.raises(RuntimeError, match="validation fails"):
        trainer(tmp_path / "failing", EMA(decay=0.5), RunCheckpoint()).fit(failing)
    expected = AtomicCheckpointIO().load_checkpoint(tmp_path / "straight/checkpoints/last.ckpt")
    assert torch.equal(failing.layer.weight.detach(), expected["current_model_state"]["layer.weight"])
