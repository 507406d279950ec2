"""The data module under a real Trainer."""

import atexit
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from small_stores import write_store

from datamodules import Exclude, LatentDataModule, Store, Subset
from lightning_attr.errors import StoreError, UserError
from lightning_attr.runs.ranks import leave_group


class Recorder(pl.LightningModule):
    """A tiny network whose weights depend on every batch and its order."""

    def __init__(self, log: Path | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(48, 4)
        self.log_file = log
        self.seen: list[list[int]] = []

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            atexit.register(leave_group)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.record(batch)
        return self.layer(batch["latent"].flatten(1)).square().mean() + batch["text"].mean() * self.layer.bias.sum()  # type: ignore[no-any-return]

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["latent"].ndim == 5

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.record(batch)

    def record(self, batch: dict[str, torch.Tensor]) -> None:
        ids = batch["id"].tolist()
        self.seen.append(ids)
        if self.log_file is not None:
            with self.log_file.with_suffix(f".{self.global_rank}").open("a") as file:
                file.write(json.dumps(ids) + "\n")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def trainer(root: Path, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "use_distributed_sampler": False}
    return pl.Trainer(default_root_dir=root, **(defaults | quiet | options))


def fit(root: Path, data: LatentDataModule, ckpt_path: str | None = None, **options: Any) -> tuple[Recorder, list[str]]:
    keep = ModelCheckpoint(root, "{step}", every_n_train_steps=1, save_top_k=-1)
    end = ModelCheckpoint(root / "end", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    module = Recorder()
    trainer(root, callbacks=[keep, end], **options).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, sorted(str(path) for path in [*root.glob("*.ckpt"), *root.glob("end/*.ckpt")])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("validate", [False, True])
def test_resume_is_exact_wherever_it_was_stopped(
    store_path: Path, tmp_path: Path, workers: int, validate: bool
) -> None:
    def data() -> LatentDataModule:
        subset = Subset(first=100)
        val_store = str(store_path) if validate else None
        return LatentDataModule(str(store_path), 32, seed=4, num_workers=workers, val_store=val_store, subset=subset)

    whole, checkpoints = fit(tmp_path / "whole", data())
    assert len(whole.seen) == 12
    assert len(checkpoints) == 15
    for number, checkpoint in enumerate(checkpoints):
        if workers and number % 4:
            continue  # workers are slow to start
        resumed, _ = fit(tmp_path / f"resumed-{number}", data(), checkpoint)
        done = len(whole.seen) - len(resumed.seen)
        assert done == torch.load(checkpoint, weights_only=True)["global_step"]
        assert resumed.seen == whole.seen[done:]
        for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
            assert torch.equal(one, other)


def test_limited_batches_and_reloading(store_path: Path, tmp_path: Path) -> None:
    data = LatentDataModule(str(store_path), 32, subset=Subset(first=100))
    expected, _ = fit(tmp_path / "a", data)
    limited, _ = fit(tmp_path / "b", data, limit_train_batches=2)
    assert limited.seen == [expected.seen[place] for place in (0, 1, 4, 5, 8, 9)]
    reloaded, _ = fit(tmp_path / "c", data, reload_dataloaders_every_n_epochs=1)
    assert reloaded.seen == expected.seen


def test_a_changed_batch_size_in_the_middle_of_an_epoch(store_path: Path, tmp_path: Path) -> None:
    fit(tmp_path / "a", LatentDataModule(str(store_path), 32), max_epochs=1)
    other = LatentDataModule(str(store_path), 16)
    with pytest.raises(UserError, match=r"batch_size 16.* expected batch_size 32"):
        fit(tmp_path / "b", other, str(tmp_path / "a" / "step=2.ckpt"), max_epochs=2)
    fit(tmp_path / "c", other, str(tmp_path / "a" / "end" / "epoch=0.ckpt"), max_epochs=2)  # between epochs it is fine


def test_stored_order_and_prediction(store_path: Path, tmp_path: Path) -> None:
    data = LatentDataModule(str(store_path), 64, order="stored", exclude=Exclude(ids=[0, 3]))
    module, _ = fit(tmp_path, data, max_epochs=1)
    expected = [id for id in range(0, 450, 3) if id not in (0, 3)]
    assert [id for batch in module.seen for id in batch] == expected
    module.seen = []
    trainer(tmp_path).predict(module, datamodule=data)
    assert [id for batch in module.seen for id in batch] == expected
    assert data.left_out_ids == [0, 3]
    assert data.store_digest == Store(store_path).digest


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, 16])
def test_two_ranks(tmp_path: Path, count: int) -> None:
    store = str(write_store(tmp_path / "a.lmdb", count))
    for task in ("fit", "predict"):
        log = tmp_path / task
        options: dict[str, Any] = {"devices": 2, "strategy": "ddp_spawn", "max_epochs": 1}
        getattr(trainer(tmp_path, **options), task)(Recorder(log), datamodule=LatentDataModule(store, 4))
        ranks = [[json.loads(line) for line in log.with_suffix(f".{rank}").open()] for rank in (0, 1)]
        assert len(ranks[0]) == len(ranks[1])
        assert sorted(id for batches in ranks for ids in batches for id in ids) == list(range(0, 3 * count, 3))


def test_from_yaml(store_path: Path, tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LatentDataModule, "data")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"data:\n  store: {store_path}\n  batch_size: 8\n  exclude:\n    random: 5\n  subset:\n    first: 50\n"
    )
    parser.add_argument("--config", action="config")
    data = parser.instantiate(parser.parse_args([f"--config={config}", "--data.exclude.seed=3"])).data
    assert data.exclude == Exclude(random=5, seed=3)
    assert len(data.positions) == 45
    assert len(data.left_out_ids) == 105


def test_mistakes_show_at_setup(store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found no file"):
        LatentDataModule(str(tmp_path / "missing.lmdb")).setup("fit")
    with pytest.raises(StoreError, match="found no sample 1"):
        LatentDataModule(str(store_path), exclude=Exclude(ids=[1])).setup("fit")
    with pytest.raises(UserError, match=r"data\.batch_size: found 0"):
        LatentDataModule(str(store_path), batch_size=0)
