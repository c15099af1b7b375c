"""Where faces are found: registered components of kind `detectors`, given to `FaceTracks`."""

from __future__ import annotations

from data_tools.steps.detectors.base import Face, FaceDetector, FaceReader, FirstOf

__all__ = ["Face", "FaceDetector", "FaceReader", "FirstOf"]
