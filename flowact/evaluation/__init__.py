"""Evaluation: lips, identity, states, drift and motion of generated clips against exact truth or film, and the report that shows them.

`flowact.evaluation.report` and `flowact.evaluation.pictures` are imported by name where pictures are wanted.
"""

from flowact.evaluation.filmed import Film, measure_filmed
from flowact.evaluation.held_out import Evaluation, HeldOut, HeldOutClip, evaluate_stream, evaluate_truth, read_held_out
from flowact.evaluation.judges import Judge, OnnxFaceEmbedder
from flowact.evaluation.measurement import METRIC_NAMES, Clip, ClipMeasurement, Measurement, measure
from flowact.evaluation.metrics_file import merge_metrics, read_metrics

__all__ = [
    "METRIC_NAMES",
    "Clip",
    "ClipMeasurement",
    "Evaluation",
    "Film",
    "HeldOut",
    "HeldOutClip",
    "Judge",
    "Measurement",
    "OnnxFaceEmbedder",
    "evaluate_stream",
    "evaluate_truth",
    "measure",
    "measure_filmed",
    "merge_metrics",
    "read_held_out",
    "read_metrics",
]
