"""Noise levels for training and streaming, and solvers that go down from one to the next."""

from flowact.schedulers.adams_bashforth import AdamsBashforth
from flowact.schedulers.base import NoiseScheduler, shift_levels
from flowact.schedulers.euler import Euler
from flowact.schedulers.flow import LogitNormalLevel, UniformLevel
from flowact.schedulers.forcing import IndependentLevels, MixedLevels, StaircaseLevels
from flowact.schedulers.named import SolverWord, solver_of
from flowact.schedulers.renoise import Renoise
from flowact.schedulers.solver import Solver, gaussian
from flowact.schedulers.staircase import Staircase

__all__ = [
    "AdamsBashforth",
    "Euler",
    "IndependentLevels",
    "LogitNormalLevel",
    "MixedLevels",
    "NoiseScheduler",
    "Renoise",
    "Solver",
    "SolverWord",
    "Staircase",
    "StaircaseLevels",
    "UniformLevel",
    "gaussian",
    "shift_levels",
    "solver_of",
]
