"""Pictures for TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class SampleImage:
    """A JPEG and the words under it."""

    jpeg: bytes
    words: str


def summary_writer(trainer: pl.Trainer) -> SummaryWriter | None:
    """Return TensorBoard's writer where the run logs to TensorBoard, and only on rank 0."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return logger.experiment  # type: ignore[no-any-return]
    return None


def image_grid(images: Sequence[SampleImage], title: str, columns: int = 4) -> Figure:
    """Draw images in rows, each with its words."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.9 * rows), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, image in zip(axes, images, strict=False):
        axis.imshow(Image.open(io.BytesIO(image.jpeg)))
        axis.set_title(fill(image.words, 30), fontsize=7)
    return figure
