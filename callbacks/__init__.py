"""What watches a run: loss deltas, moving average, sample grids, top images, checkpoints, a graceful stop."""

from callbacks.checkpoint import AtomicCheckpointIO, RunCheckpoint
from callbacks.ema import EMA
from callbacks.graceful_stop import GracefulStop
from callbacks.loss_deltas import LossDeltaRecorder
from callbacks.sample_grids import SampleGrid
from callbacks.side_by_side import SideBySide
from callbacks.top_images import TopImages

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "GracefulStop",
    "LossDeltaRecorder",
    "RunCheckpoint",
    "SampleGrid",
    "SideBySide",
    "TopImages",
]
