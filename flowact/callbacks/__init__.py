"""Lightning callbacks: checkpoints and resuming, moving average, speed, progress, previews, health, a guard against NaN."""

from flowact.callbacks.checkpoint import CheckpointFolder
from flowact.callbacks.ema import ExponentialMovingAverage
from flowact.callbacks.guard import NonFiniteGuard
from flowact.callbacks.health import TrainingHealth
from flowact.callbacks.preview import StreamPreview
from flowact.callbacks.progress import StepProgress
from flowact.callbacks.throughput import Throughput

__all__ = ["CheckpointFolder", "ExponentialMovingAverage", "NonFiniteGuard", "StepProgress", "StreamPreview", "Throughput", "TrainingHealth"]
