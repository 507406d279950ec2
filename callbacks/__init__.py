"""What watches a run: loss deltas, moving average, sample grids, top images, methods side by side, the last steps."""

from callbacks.ema import EMA
from callbacks.loss_deltas import LossDeltaRecorder
from callbacks.sample_grids import SampleGrid
from callbacks.side_by_side import SideBySide
from callbacks.top_images import TopImages
from callbacks.trajectory import Trajectory

__all__ = ["EMA", "LossDeltaRecorder", "SampleGrid", "SideBySide", "TopImages", "Trajectory"]
