"""What the tasks that study a trained model share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.artifacts.provenance import check_made_from, digest_of
from lightning_attr.curvature import AnyCurvature, Damping, load_curvature
from lightning_attr.errors import UserError
from lightning_attr.models import load


def require_one_rank(task: pl.LightningModule) -> None:
    """Refuse several ranks, each of which would take its share of the result for the whole.

    Raises:
        UserError: The trainer has several ranks.
    """
    if task.trainer.world_size > 1:
        raise UserError(f"trainer.devices: found {task.trainer.world_size} ranks, expected 1 for {type(task).__name__}")


class AnalysisTask(pl.LightningModule):
    """A task over a trained and frozen denoiser.

    The denoiser moves with the module but stays out of its checkpoints: it is in ``checkpoint`` already.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``, or the folder of a diffusers pipeline.
    """

    strict_loading = False

    def __init__(self, checkpoint: InputPath) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.model = load(checkpoint)
        self.denoiser = self.model.network  # so that Lightning moves it

    def sum_over_ranks(self, names: list[str]) -> None:
        """Say that this task sums the named buffers and gradients over ranks itself, so that DDP leaves them alone.

        DDP would send the buffers of rank 0 to the others at every step. It also wraps no module that has no parameter
        to train; ``unused`` is one.
        """
        self.unused = nn.Parameter(torch.zeros(()))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)  # type: ignore[no-untyped-call]

    @property
    def run(self) -> Path:
        """Return the folder of this run."""
        return Path(self.trainer.default_root_dir)

    def fitted_curvature(self, path: str, weights: Mapping[str, Tensor], damping: Damping) -> AnyCurvature:
        """Read a curvature that was fitted on the model, or on its base for weights that this has as well.

        Raises:
            UserError: It was fitted on another model, lacks a weight, or has a zero that the damping leaves.
        """
        curvature = load_curvature(path)
        if digest_of(curvature.settings, "checkpoint") not in self.model.lineage:
            check_made_from(f"curvature {path}", curvature.settings, "checkpoint", self.model.digest, self.checkpoint)
        # Ask for the inverse now: what is wrong should not show only after the draws are done.
        curvature.inverse(weights, damping)
        return curvature

    def log_step(self, name: str, value: float | Tensor) -> None:
        """Log what a step has measured: analyses take fewer steps than Lightning leaves out between two points."""
        self.log(name, value, prog_bar=True, logger=False)
        if self.logger is not None:
            self.logger.log_metrics({name: float(value)}, step=self.global_step)

    def digests(self) -> dict[str, str]:
        """Return the digests of what this task was given, for the settings of its artefacts."""
        return {"checkpoint": self.model.digest}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen denoiser out."""
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("denoiser.")
        }
