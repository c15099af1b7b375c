"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from flowact.errors import UserError

if TYPE_CHECKING:
    from flowact.sampling.refinement import Refinement
    from flowact.schedulers.solver import Solver


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What names a recipe on the command line."""
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a YAML file, or a packaged recipe such as quickstart/pretraining.yaml")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="values to replace, such as trainer.max_steps=100")


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is streamed."""
    parser.add_argument(
        "--micro-steps", type=int, metavar="M", help="evaluations per stair; 1 for a distilled model (default: as the checkpoint says, else 1)"
    )
    parser.add_argument(
        "--solver",
        metavar="NAME",
        help="takes chunks from level to level: a name from `flowact list solvers`, or '{class_path: NAME, init_args: {...}}' "
        "(default: as the checkpoint says, else Euler)",
    )
    parser.add_argument(
        "--guidance",
        type=guidance_scales,
        default=1.0,
        metavar="W",
        help="classifier-free guidance scale; 1 is none, any other doubles the evaluations but for a model that was distilled with scales as inputs, "
        "which also takes one each as TEXT,AUDIO (default: %(default)s)",
    )


def chosen_solver(args: argparse.Namespace) -> Solver | None:
    """The solver that `--solver` names; None leaves it to the checkpoint.

    Raises:
        UserError: no such solver, or arguments that it does not take.
    """
    from flowact.schedulers.named import solver_of
    from flowact.strict_yaml import read_yaml

    if args.solver is None:
        return None
    given, _ = read_yaml(args.solver, "--solver")
    try:
        return solver_of(given)
    except UserError as error:
        raise UserError(f"--solver {args.solver}: {error}") from error


def add_lora_argument(parser: argparse.ArgumentParser) -> None:
    """LoRAs that are merged before streaming."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH",
        help="merge a LoRA into the weights first: what `flowact export --lora` wrote, a LoRA's checkpoint, or a .safetensors file (repeatable)",
    )


def add_refinement_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether a stream refines its memory."""
    parser.add_argument(
        "--refine",
        metavar="N|drift",
        help="denoise the short memory again every N chunks, or when its colours have drifted (default: never)",
    )
    parser.add_argument("--refine-sigma", type=float, metavar="S", help="noise level for that, above 0 and at most 1 (default: 0.3)")


def chosen_refinement(args: argparse.Namespace) -> Refinement:
    """The refinement that `--refine` names.

    Raises:
        UserError: neither a number of chunks nor "drift", or a level out of range.
    """
    from flowact.sampling.refinement import DriftRefinement, NoRefinement, PeriodicRefinement

    level = {} if args.refine_sigma is None else {"sigma": args.refine_sigma}
    try:
        if args.refine is None:
            if level:
                raise UserError("--refine-sigma goes with --refine N or --refine drift")
            return NoRefinement()
        return DriftRefinement(**level) if args.refine == "drift" else PeriodicRefinement(every=int(args.refine), **level)
    except ValueError as error:
        rule = "a number of chunks, from 1, or drift; --refine-sigma is above 0 and at most 1"
        raise UserError(f"--refine {args.refine} is {rule} ({error})") from error


def guidance_scales(text: str) -> float | tuple[float, float]:
    """One scale, or two with a comma between them: for text and for audio."""
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = []
    if not 1 <= len(scales) <= 2 or not all(math.isfinite(scale) for scale in scales):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor two as TEXT,AUDIO, such as 2 or 1,3")
    return scales[0] if len(scales) == 1 else (scales[0], scales[1])
