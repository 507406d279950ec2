"""Signals stop a training after the batch, anything else at once, and are given back."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_attr.runs.checkpoints import RunCheckpoint
from lightning_attr.runs.stopping import GracefulStop


class Interrupted(pl.LightningModule):
    """Sends a signal in the middle of a step."""

    def __init__(self, sends: signal.Signals) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.sends = sends
        self.finished_steps = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 2:
            os.kill(os.getpid(), self.sends)
        loss: Tensor = self.layer(batch).sum()
        self.finished_steps += 1
        return loss

    def predict_step(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx == 2:
            os.kill(os.getpid(), self.sends)
        self.finished_steps += 1

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(8, 1))  # type: ignore[arg-type]

    predict_dataloader = train_dataloader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.fixture
def hangups() -> Iterator[None]:
    """Notice SIGHUP: where the tests run under ``nohup``, it is ignored, and a run would leave it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("sends", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("verb", "finished"), [("fit", 3), ("predict", 2)])
def test_stops_and_gives_the_signals_back(tmp_path: Path, sends: signal.Signals, verb: str, finished: int) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=1, callbacks=[GracefulStop(), RunCheckpoint()],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Interrupted(sends)
    with pytest.raises(SIGTERMException) as stopped:
        getattr(trainer, verb)(module)
    assert stopped.value.code == 128 + sends
    assert module.finished_steps == finished
    if verb == "fit":
        assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
