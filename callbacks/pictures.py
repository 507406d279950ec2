"""Pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch.utils.tensorboard import SummaryWriter

from lightning_attr.console import printable
from lightning_attr.encoders import read_image
from lightning_attr.errors import shortened

_CELL = 1.25
"""Height of a picture with its words above it, in widths: there is room for five lines."""


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
    """Draw images in rows, each below its words."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.9 * rows + 0.6), layout="constrained")
    figure.suptitle(printable(title), parse_math=False)
    axes = _canvas(figure, columns, rows * _CELL)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        bottom = (row + 1) * _CELL - 0.98
        axes.text(
            column + 0.46, bottom, _lines(image.words, 38, 5), ha="center", va="bottom", fontsize=7, parse_math=False
        )
        _place(axes, image, column, bottom + 0.03)
    return figure


def image_rows(rows: Mapping[str, Sequence[SampleImage]], subject: SampleImage) -> Figure:
    """Draw named rows of images below the image that they are about; marked images have a frame and their mark.

    Names go above their rows: there may be many, and they may be long.
    """
    columns = max(map(len, rows.values()), default=1)
    figure = Figure(figsize=(0.95 * columns + 0.3, 1.35 * len(rows) + 1.4), layout="constrained")
    step = 1.42
    axes = _canvas(figure, columns, len(rows) * step, top=-step - 0.1)
    _place(axes, subject, 0, -step)
    axes.text(1.08, -step + 0.5, _lines(subject.words, 9 * columns, 8), va="center", fontsize=9, parse_math=False)
    for row, (name, images) in enumerate(rows.items()):
        axes.text(0, row * step - 0.06, printable(name), fontsize=8, weight="bold", parse_math=False)
        for column, image in enumerate(images):
            _place(axes, image, column, row * step)
            words = printable(image.words)
            axes.text(column + 0.46, row * step + 0.96, words, ha="center", va="top", fontsize=6, parse_math=False)
    return figure


def _canvas(figure: Figure, width: float, bottom: float, top: float = 0) -> Axes:
    """Return one set of axes for all images of a figure: laying out a hundred of them would take a minute."""
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, width), ylim=(bottom, top), aspect="equal")
    return axes


def _lines(words: str, width: int, most: int) -> str:
    """Return foreign words, such as captions, in lines: what nobody would read is cut off before it is laid out."""
    return fill(printable(shortened(words, width * most)), width, max_lines=most, placeholder=" …")


def _place(axes: Axes, image: SampleImage, left: float, top: float) -> None:
    """Draw the picture, and its mark; nothing where there is no picture in the file."""
    if (picture := read_image(image.jpeg)) is not None:
        axes.imshow(picture, extent=(left, left + 0.92, top + 0.92, top))
    if image.mark:
        axes.add_patch(Rectangle((left, top), 0.92, 0.92, fill=False, edgecolor="C0", linewidth=2))
        box = {"facecolor": "C0", "edgecolor": "none", "pad": 1.5}
        axes.text(left + 0.88, top + 0.05, image.mark, ha="right", va="top", fontsize=7, color="white", bbox=box)
