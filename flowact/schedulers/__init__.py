"""Noise levels for training and streaming."""

from flowact.schedulers.base import NoiseScheduler, shift_levels
from flowact.schedulers.flow import LogitNormalLevel, UniformLevel
from flowact.schedulers.forcing import IndependentLevels, MixedLevels, StaircaseLevels
from flowact.schedulers.staircase import Staircase

__all__ = ["IndependentLevels", "LogitNormalLevel", "MixedLevels", "NoiseScheduler", "Staircase", "StaircaseLevels", "UniformLevel", "shift_levels"]
