"""Solvers by name: what recipes, checkpoints and the command line say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flowact.registry import instantiate
from flowact.schedulers.solver import Solver

SolverWord = Literal["euler", "renoise"]
#: word of a recipe or a checkpoint -> component
WORDS: Mapping[str, str] = {"euler": "Euler", "renoise": "Renoise"}


def solver_of(given: Solver | str | Mapping[str, Any]) -> Solver:
    """A solver: itself, or from a word, the name of a component, or a spec.

    Raises:
        UserError: no such solver, or wrong arguments.
    """
    if isinstance(given, Solver):
        return given
    spec = {"class_path": WORDS.get(given, given)} if isinstance(given, str) else given
    solver: Solver = instantiate(spec, "solvers")
    return solver
