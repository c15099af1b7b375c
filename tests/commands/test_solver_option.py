"""`--solver` of generate, serve and evaluate, and how a checkpoint names the solver of its streams."""

from __future__ import annotations

import argparse
import importlib

import pytest

from flowact.commands.arguments import chosen_solver
from flowact.errors import UserError
from flowact.models import MMDiT
from flowact.schedulers import AdamsBashforth, Euler, Renoise, solver_of
from flowact.stages import ChunkwiseDiffusionForcing, ConsistencyDistillation


@pytest.mark.parametrize("verb", ["generate", "serve", "evaluate"])
def test_every_verb_that_streams_takes_a_solver(verb):
    parser = argparse.ArgumentParser()
    module = importlib.import_module(f"flowact.commands.{verb}")
    module.add_arguments(parser)
    option = next(action for action in parser._actions if "--solver" in action.option_strings)
    assert option.default is None


@pytest.mark.parametrize(
    ("written", "solver"),
    [
        (None, None),
        ("AdamsBashforth", AdamsBashforth()),
        ("renoise", Renoise()),
        ("{class_path: Euler}", Euler()),
        ("{class_path: AdamsBashforth, init_args: {}}", AdamsBashforth()),
    ],
)
def test_it_is_a_name_or_a_spec(written, solver):
    assert chosen_solver(argparse.Namespace(solver=written)) == solver


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("AdamsBashfort", "--solver AdamsBashfort: .*Did you mean AdamsBashforth"),
        ("MixedLevels", "is not a Solver"),
        ("{class_path: Euler, init_args: {order: 2}}", "no argument 'order'"),
        ("{class_path", "not valid YAML"),
    ],
)
def test_what_is_none_is_said(written, says):
    with pytest.raises(UserError, match=says):
        chosen_solver(argparse.Namespace(solver=written))


SPEC = {"class_path": "a.B", "init_args": {"c": 1}}


def network():
    return MMDiT(2, 3, 2, width=16, num_heads=2, num_double_blocks=1, num_single_blocks=1)


@pytest.mark.parametrize(
    ("cls", "options", "recipe", "named"),
    [
        (ChunkwiseDiffusionForcing, {}, None, "euler"),
        (ConsistencyDistillation, {}, None, "renoise"),
        (ChunkwiseDiffusionForcing, {"solver": "renoise"}, None, "renoise"),
        (ChunkwiseDiffusionForcing, {"solver": AdamsBashforth()}, None, {"class_path": "AdamsBashforth"}),
        (ChunkwiseDiffusionForcing, {"solver": AdamsBashforth()}, SPEC, SPEC),
    ],
)
def test_a_checkpoint_names_what_its_recipe_said_so_that_a_stream_finds_it(cls, options, recipe, named):
    stage = cls(network(), **options)
    if recipe:
        stage.recipe = {"model": {"init_args": {"solver": recipe}}}
    assert stage._named_solver() == named
    if not recipe:
        assert type(solver_of(stage._named_solver())) is type(solver_of(stage.solver))
