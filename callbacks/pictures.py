"""Pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.utils.tensorboard import SummaryWriter

from lightning_attr.console import printable
from lightning_attr.encoders import read_image
from lightning_attr.errors import shortened

_MOST_WORDS = 300
"""Characters below a picture."""


@dataclass(frozen=True)
class SampleImage:
    """A JPEG, the words under it, and a mark on it where there is something special about it."""

    jpeg: bytes
    words: str
    mark: str = ""


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
    figure.suptitle(printable(title), parse_math=False)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, image in zip(axes, images, strict=False):
        _draw(axis, image)
        axis.set_title(_lines(image.words, 30), fontsize=7, parse_math=False)
    return figure


def image_rows(rows: Mapping[str, Sequence[SampleImage]], subject: SampleImage) -> Figure:
    """Draw named rows of images below the image that they are about; marked images have a frame and their mark.

    Names go above their rows: there may be many, and they may be long.
    """
    columns = max(map(len, rows.values()), default=1)
    figure = Figure(figsize=(0.95 * columns + 0.3, 1.35 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    # One set of axes for all images: a hundred of them would take a minute to lay out.
    step = 1.42
    _place(axes, subject, 0, -step)
    axes.text(1.08, -step + 0.5, _lines(subject.words, 9 * columns), va="center", fontsize=9, parse_math=False)
    for row, (name, images) in enumerate(rows.items()):
        axes.text(0, row * step - 0.06, printable(name), fontsize=8, weight="bold", parse_math=False)
        for column, image in enumerate(images):
            _place(axes, image, column, row * step)
            words = printable(image.words)
            axes.text(column + 0.46, row * step + 0.96, words, ha="center", va="top", fontsize=6, parse_math=False)
    axes.set(xlim=(0, columns), ylim=(len(rows) * step, -step - 0.1), aspect="equal")
    return figure


def _lines(words: str, width: int) -> str:
    """Return foreign words, such as captions, in lines: what nobody would read is cut off before it is laid out."""
    return fill(printable(shortened(words, _MOST_WORDS)), width)


def _draw(axes: Axes, image: SampleImage, **place: Any) -> None:
    """Draw the picture; nothing where there is none in the file."""
    picture = read_image(image.jpeg)
    if picture is not None:
        axes.imshow(picture, **place)


def _place(axes: Axes, image: SampleImage, left: float, top: float) -> None:
    _draw(axes, image, extent=(left, left + 0.92, top + 0.92, top))
    if image.mark:
        axes.add_patch(Rectangle((left, top), 0.92, 0.92, fill=False, edgecolor="C0", linewidth=2))
        box = {"facecolor": "C0", "edgecolor": "none", "pad": 1.5}
        axes.text(left + 0.88, top + 0.05, image.mark, ha="right", va="top", fontsize=7, color="white", bbox=box)
