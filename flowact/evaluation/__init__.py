"""Evaluation: lips, identity, states, drift and motion of generated clips against exact truth, and the report that shows them."""

from flowact.evaluation.measurement import METRIC_NAMES, Clip, ClipMeasurement, Measurement, measure

__all__ = ["METRIC_NAMES", "Clip", "ClipMeasurement", "Measurement", "measure"]
