"""Lightning callbacks: checkpoints and resuming, moving average, speed, progress, previews, noise levels, health, a guard against NaN."""

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.callbacks.guard import NonFiniteGuard
from flowact.callbacks.health import TrainingHealth
from flowact.callbacks.levels import NoiseLevels
from flowact.callbacks.preview import StreamPreview
from flowact.callbacks.progress import StepProgress
from flowact.callbacks.throughput import Throughput

__all__ = [
    "CheckpointFolder",
    "ExponentialMovingAverage",
    "NoiseLevels",
    "NonFiniteGuard",
    "StepProgress",
    "StreamPreview",
    "Throughput",
    "TrainingHealth",
]
